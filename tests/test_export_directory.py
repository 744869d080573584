"""An exported directory: made, kept, mended, vouched for only above the floors. One small model, exported once."""

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import fr_export
from cuda_stand_in import CudaStandIn
from export_cases import TINY, tiny_bundle
from exported_toy import as_engines
from fr_deploy.bundle import load_graph
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import (
    FILE,
    PARTS,
    Batches,
    Gpu,
    Manifest,
    parse_manifest,
    write_manifest,
)
from fr_deploy.runtime import here, tensorrt_backend
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_export import state
from fr_export.cache import export_key
from fr_export.onnx import graph_hash
from fr_export.run_engines import verify_engines
from fr_export.session import exported_files, run_files
from fr_export.state import Made, file_of, file_sha256, finished, record
from fr_export.verify import fixed_faces
from tensorrt_runtime_stand_in import RuntimeStandIn
from tensorrt_stand_in import VERSIONS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    fr_export.export(bundle, out)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / f"{name}.onnx").stat().st_mtime_ns for name in PARTS}


def read(folder: Path) -> Manifest:
    return parse_manifest((folder / FILE).read_bytes())


def alter(path: Path, name: str, by: float, first: int | None = None) -> None:
    """Multiply a weight of an ONNX file, or its first values."""
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[:first] *= np.asarray(by, values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)


def test_the_manifest_says_what_lies_there(bundle: Path, made: Path) -> None:
    manifest, graph = read(made), load_graph(bundle)
    assert {p.name for p in made.iterdir()} == {FILE, state.FOLDER, *(f"{n}.onnx" for n in PARTS)}
    for component in manifest.components:
        (file,) = component.files
        assert (file.bytes, file.sha256) == (
            (made / file.path).stat().st_size,
            file_sha256(made / file.path),
        )
    assert (manifest.preset, manifest.size, manifest.graph) == ("tiny", 32, graph_hash(graph))
    assert (manifest.format, manifest.precision, manifest.verified) == ("onnx", "fp32", "onnx")
    ends = [(c.inputs[0].name, [o.name for o in c.outputs]) for c in manifest.components]
    assert ends == [
        ("faces", ["latent"]),
        ("latent", ["aligned", "codes"]),
        ("aligned", ["denoised"]),
        ("denoised", ["restored"]),
    ]
    assert manifest.component("adapter").outputs[1].shape == ("batch", 256)
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.parity.codes >= 0.999


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_parts_compute_the_graph(bundle: Path, made: Path, batch: int) -> None:
    faces = random_pictures(TINY.size, batch)
    values = run_files(exported_files(made), faces)
    graph = load_graph(bundle)
    forced = graph.stages(faces, values["codes"])
    assert agree(values["restored"], graph.to_bytes(forced.picture)).psnr >= 60
    assert (values["codes"] == graph.stages(faces).codes).double().mean() >= 0.999


def test_what_is_finished_is_not_made_again(bundle: Path, out: Path) -> None:
    before, manifest = times(out), read(out)
    said: list[str] = []
    assert fr_export.export(bundle, out, say=said.append) == manifest
    assert times(out) == before
    assert said[:4] == [f"{name}.onnx  was finished" for name in PARTS]


def test_a_harmed_file_alone_is_made_again(bundle: Path, out: Path) -> None:
    right, before = (out / "adapter.onnx").read_bytes(), times(out)
    harmed = bytearray(right)
    harmed[len(harmed) // 2] ^= 1
    (out / "adapter.onnx").write_bytes(harmed)
    (out / ".0123.part").write_bytes(b"of a killed export")
    (out / "whole.onnx").write_bytes(b"of an earlier one")
    fr_export.export(bundle, out)
    assert (out / "adapter.onnx").read_bytes() == right
    after = times(out)
    assert {name for name in PARTS if after[name] != before[name]} == {"adapter"}
    assert not (out / ".0123.part").exists()
    assert not (out / "whole.onnx").exists()


def test_below_the_floor_there_is_no_manifest(bundle: Path, out: Path) -> None:
    """A file that was made wrong, not one that was harmed: its digest is the one on record."""
    alter(out / "decoder.onnx", "decoder.conv_out.bias", 1.01)
    key = export_key(load_graph(bundle), "decoder")
    details = finished(out, "encoder.onnx", export_key(load_graph(bundle), "encoder"))
    assert details is not None
    record(out, "decoder.onnx", key, Made((file_of(out, "decoder.onnx", "onnx"),), details.details))
    said: list[str] = []
    with pytest.raises(
        ModelError,
        match=r"\d dB with codes forced, 100.000% .* required in fp32 are 60 dB and 99.9%",
    ) as caught:
        fr_export.export(bundle, out, say=said.append)
    assert caught.value.exit_code == 5
    forced = float(str(caught.value).split("passed: ")[1].split(" dB")[0])
    assert 30 < forced < 60
    assert not (out / FILE).exists()
    assert any(line.startswith("unet     denoised  cosine 1.0000") for line in said)


def test_only_an_export_is_written_over(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="no earlier export and not empty"):
        fr_export.export(bundle, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_two_do_not_write_at_once(bundle: Path, out: Path) -> None:
    with (out / state.FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ResourceError, match="another export is writing"):
            fr_export.export(bundle, out)
    assert (out / FILE).exists()


def test_another_model_is_not_what_it_was_made_from(out: Path) -> None:
    with pytest.raises(ModelError, match=r"made from other weights .* --model .* --lora"):
        fr_export.verify_directory(out, "lafr-mini")
    assert (out / FILE).exists(), "not the files' fault"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "weight", "first", "tensor"),
    [
        ("encoder", "encoder.conv_in.weight", 1, "conv2d"),
        ("unet", "unet.middle.0.resnets.0.conv2.weight", None, None),
        ("decoder", "decoder.conv_out.bias", 1, None),
    ],
)
def test_a_weight_changed_by_a_hundredth_is_found(
    bundle: Path, out: Path, part: str, weight: str, first: int | None, tensor: str | None
) -> None:
    """One value, or one tensor."""
    model = onnx.load(out / f"{part}.onnx")
    (user,) = (n for n in model.graph.node if weight in n.input)
    assert tensor is None or user.output[0] == tensor
    alter(out / f"{part}.onnx", weight, 1.01, first)
    said: list[str] = []
    with pytest.raises(ModelError):
        fr_export.verify_directory(out, bundle, say=said.append)
    assert not (out / FILE).exists()
    assert f"{out / part}.onnx: ALTERED" in said
    assert sum("byte by byte" in line for line in said) == 3
    found = next(line for line in said if "departs" in line)
    assert (
        f"{part}.onnx: the first tensor that departs is {user.output[0]!r}, made by Conv" in found
    )
    assert f"other constants: {weight}" in found


@pytest.mark.slow
def test_an_export_that_is_right_passes_and_nothing_departs(bundle: Path, out: Path) -> None:
    said: list[str] = []
    parity = fr_export.verify_directory(out, bundle, bisect=True, say=said.append)
    assert parity == read(out).parity
    assert "no tensor departs from what the model computes" in said


def test_the_model_is_named_where_it_is_not_embedded(out: Path) -> None:
    with pytest.raises(UsageError, match=r"of preset tiny; name the model .* with --model"):
        fr_export.verify_directory(out)


@pytest.mark.parametrize("altered", [False, True])
def test_engines_are_run_where_their_gpu_is(
    bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch, altered: bool
) -> None:
    """On stand-ins, to which an engine is an ONNX file: the way of the figures, not an engine, is what runs here."""
    version = next(v for v in VERSIONS if "rtx" in v)
    number = version.rpartition("-")[2]
    if altered:
        alter(out / "unet.onnx", "unet.conv_in.weight", 1.5)
    gpu = Gpu(None, ("8.9",), "580")
    as_engines(out, "tensorrt-rtx", number, gpu, batches=(Batches(1, 2, 2),))
    manifest = replace(read(out), verified="onnx only")
    write_manifest(out, manifest)
    graph, faces = load_graph(bundle), fixed_faces(TINY.size)
    said: list[str] = []
    assert verify_engines(out, manifest, graph, faces, said.append) == manifest
    assert "the engines were not run, only their ONNX files: " in said[0]
    cuda = CudaStandIn()
    trt = RuntimeStandIn(version, cuda, profiles=((1, 2, 2),))
    monkeypatch.setattr(tensorrt_backend, "_module", lambda form: trt)
    monkeypatch.setattr(tensorrt_backend, "bindings", lambda name: cuda)
    nvml = type("Nvml", (), {"init_v2": int, "system_get_driver_version": lambda: "580.65.06"})
    monkeypatch.setattr(here, "bindings", {"runtime": cuda, "nvml": nvml}.__getitem__)
    monkeypatch.setattr(here, "version", lambda name: number)
    if altered:
        with pytest.raises(ModelError, match="does not compute what the graph computes"):
            verify_engines(out, manifest, graph, faces, said.append)
        assert not (out / FILE).exists()
    else:
        verified = verify_engines(out, manifest, graph, faces, said.append)
        assert (verified.verified, verified.parity.codes >= 0.999) == ("engine", True)
        assert [o.output for o in verified.parity.outputs] == [
            "latent",
            "aligned",
            "denoised",
            "restored",
        ]
        assert read(out) == verified
    assert not cuda.memory
