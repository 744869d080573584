"""`fr-deploy export onnx`: writes, compares, and fails where the pictures differ."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, save

from fr_deploy.bundle import load_graph, save_bundle
from fr_deploy.cli import main
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.onnx_backend import OnnxBackend
from fr_export.onnx import graph_metadata
from fr_export.verify import photo_faces

DEMO = Path(__file__).parents[1] / "assets" / "demo"


def write_inverter(graph: object, path: Path, **_: object) -> None:
    """An export that is ours by its metadata and computes something else."""
    shape = ["batch", 64, 64, 3]
    sides = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
        for name in ("faces", "restored")
    ]
    node = helper.make_node("BitwiseNot", ["faces"], ["restored"])
    made = helper.make_graph([node], "inverter", sides[:1], sides[1:])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, graph_metadata(graph).to_props())
    save(model, path)


def test_an_export_that_computes_something_else_exits_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_bundle(LafrModel(PRESETS["lafr-toy"]), tmp_path / "toy")
    (tmp_path / "photos").mkdir()
    shutil.copy(DEMO / "selfie.jpg", tmp_path / "photos")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    monkeypatch.setattr("fr_export.onnx.export_onnx", write_inverter)
    given = [tmp_path / "toy", "-o", tmp_path / "x.onnx", "--photos", tmp_path / "photos"]
    done = CliRunner().invoke(main, ["export", "onnx", *map(str, given)])
    assert done.exit_code == 5
    assert re.search(r"^the photos in photos: 1 faces, .* dB$", done.stdout, re.MULTILINE)
    wanted = r"the export does not compute what the graph computes: of random pictures, 2 faces"
    assert re.search(wanted, done.stderr)


def test_faces_of_photos_have_the_size_asked_for() -> None:
    assert photo_faces(DEMO, 64).shape == (5, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "least"), [("fp32", 60), ("fp16", 40)])
def test_lafr_mini_end_to_end(tmp_path: Path, dtype: str, least: int) -> None:
    file = tmp_path / "mini.onnx"
    given = ["export", "onnx", "lafr-mini", "-o", str(file), "--dtype", dtype]
    done = CliRunner().invoke(main, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{file}  {file.stat().st_size / 1e6:.1f} MB, lafr-mini in float" in done.stdout
    compared = re.findall(r"^(.*): (\d) faces, .* ([\d.]+) dB$", done.stdout, re.MULTILINE)
    assert [row[:2] for row in compared] == [("random pictures", "2"), ("the photos in demo", "5")]
    assert all(float(row[2]) >= least for row in compared)
    # Batches of the file, too, not only one face at a time.
    faces = random_pictures(512, 3)
    with OnnxBackend(file) as backend:
        together, apart = backend.run(faces), torch.cat([backend.run(f) for f in faces.split(1)])
    off = (together.int() - apart.int()).abs()
    assert (off > 0).double().mean() < 0.001
    if dtype == "fp32":
        with torch.inference_mode():
            assert (load_graph("lafr-mini")(faces).int() - together.int()).abs().max() <= 1
