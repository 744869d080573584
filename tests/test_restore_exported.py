"""`fr-deploy restore --engines DIR`, and the same from Python."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fr_export
from exported_toy import as_engines, changed, pictures
from fr_deploy.cli import main
from fr_deploy.errors import FrDeployError, ModelError, ResourceError, UsageError
from fr_deploy.images import read_photo
from fr_deploy.manifest import Gpu, Lora
from fr_deploy.manifest_check import Here
from fr_deploy.restorer import load_exported
from fr_deploy.runtime import exported as exported_module
from fr_deploy.runtime.exported import Exported
from fr_deploy.runtime.select import Request
from tests_support import psnr

DEMO = Path(__file__).parents[1] / "assets" / "demo"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "toy"))


def refused(folder: Path, kind: type[FrDeployError] = UsageError, **asked: Any) -> str:
    with pytest.raises(kind) as caught:
        load_exported(Exported(folder), request=Request(**asked))
    return str(caught.value)


def test_any_number_of_faces(exported: Path) -> None:
    faces, expected = (whole.numpy() for whole in pictures())
    restore = load_exported(Exported(exported))
    assert restore.device == "cpu, fp32, onnxruntime"
    found = r"(the same bytes|\d\d\.\d dB end to end)"
    of = f"lafr-toy from {re.escape(str(exported))}"
    assert re.fullmatch(rf"{of} \(onnx fp32, 4 components, verified: {found}\)", restore.name)
    for count in (0, 1, 3, 8):
        restored = restore(faces[:count])
        assert restored.shape == (count, 64, 64, 3)
        assert not count or psnr(restored, expected[:count]) >= 60
    twice = np.concatenate([faces, faces[:5]])
    assert psnr(restore(twice), np.concatenate([expected, expected[:5]])) >= 60
    fixed = load_exported(Exported(exported), fixed_bucket=4)
    assert np.array_equal(fixed(faces[:3]), fixed(faces[:4])[:3])
    with pytest.raises(UsageError, match="fixed bucket is 16; onnxruntime takes up to 8 faces"):
        load_exported(Exported(exported), fixed_bucket=16)


def test_the_name_says_what_is_in_it(folder: Path) -> None:
    changed(folder, loras=(Lora("style.safetensors", "0" * 64, 0.6),))
    assert load_exported(Exported(folder)).name.startswith("lafr-toy + style.safetensors:0.6 from ")


def test_what_was_exported_is_not_chosen_again(folder: Path) -> None:
    assert "leave out --device cuda:1, or export" in refused(folder, device="cuda:1")
    assert "leave out --require-gpu, or" in refused(folder, require_gpu=True)
    assert "leave out --dtype fp16, --backend torch-eager, or" in refused(
        folder, dtype="fp16", backend="torch-eager"
    )
    assert "leave out --attention flash, or" in refused(folder, attention="flash")
    assert "allowed: auto, cpu, cuda, cuda:N" in refused(folder, device="tpu")
    load_exported(Exported(folder), request=Request(device="cpu", dtype="fp32", threads=1))


def test_engines_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_engines(folder, "tensorrt-rtx", "1.7.1.116", Gpu(None, (), ""))
    monkeypatch.setattr(
        exported_module, "look", lambda index: Here({"tensorrt-rtx": "1.7.1.116"}, no_gpu="none")
    )
    message = refused(folder, ResourceError)
    assert "holds engines for NVIDIA GPUs, and there is none: none. For a CPU: fr-deploy" in message
    found = Here({"tensorrt-rtx": "1.7.1.116"}, "GPU", "8.9", "580.65")
    monkeypatch.setattr(exported_module, "look", lambda index: found)
    assert "runs in tensorrt-rtx on a GPU in fp32; leave out --device cpu" in refused(
        folder, device="cpu"
    )
    changed(folder, verified="onnx only")
    assert "--allow-unverified" in refused(folder, ModelError)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["restore", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "lafr-mini"), "--model is for runs without --engines"),
        (("--lora", "x:1"), "--lora is for runs without --engines"),
        (("--latent", "sample"), "--latent is for runs without --engines"),
        (("--seed", "0"), "--seed is for runs without --engines"),
    ],
)
def test_a_bundle_and_engines(
    options: tuple[str, ...], message: str, exported: Path, tmp_path: Path
) -> None:
    code, said = run(DEMO, "-o", tmp_path / "out", "--engines", exported, *options)
    assert (code, message in said) == (2, True)


@pytest.mark.parametrize("option", [("--allow-unverified",), ("--trust", "a.pub")])
def test_trust_without_engines(option: tuple[str, ...], tmp_path: Path) -> None:
    code, said = run(DEMO, "-o", tmp_path / "out", *option)
    assert (code, f"{option[0]} is for runs together with --engines" in said) == (2, True)


def test_a_directory_that_does_not_match(folder: Path, tmp_path: Path) -> None:
    (folder / "unet.onnx").write_bytes(b"")
    code, said = run(DEMO, "-o", tmp_path / "out", "--engines", folder)
    assert (code, "unet.onnx was cut off: it has 0 bytes" in said) == (5, True)
    code, said = run(DEMO, "-o", tmp_path / "out", "--engines", tmp_path / "nothing")
    assert (code, "is no directory, so it is no finished export" in said) == (5, True)


@pytest.mark.slow
def test_the_demo_photos(tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
    engines = tmp_path / "engines"
    fr_export.export("lafr-mini", engines)
    report = tmp_path / "report.html"
    plain = ("--ext", "png", "--backend", "torch-eager")
    assert run(DEMO, "-o", tmp_path / "torch", *plain)[0] == 0
    code, said = run(
        DEMO, "-o", tmp_path / "onnx", "--engines", engines, "--ext", "png", "--json", "--report", report
    )  # fmt: skip
    assert code == 0
    document = json.loads(said[said.index("{\n") :])
    assert document["model"].startswith(f"lafr-mini from {engines} (onnx fp32, 4 components")
    assert document["device"] == "cpu, fp32, onnxruntime"
    assert "4 components, verified" in report.read_text()
    names = sorted(path.name for path in (tmp_path / "torch").iterdir())
    assert len(names) >= 2
    for name in names:
        ours, torchs = (read_photo(tmp_path / of / name).rgb for of in ("onnx", "torch"))
        found = psnr(ours, torchs)
        assert found >= 60
        record_property("figure", f"{name} by restore --engines beside torch: {found:.1f} dB")
