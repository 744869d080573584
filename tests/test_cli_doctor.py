"""fr-deploy doctor, and the choice it leaves behind for `--backend auto`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fr_deploy.bundle import load_graph, save_bundle
from fr_deploy.cli import main
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.restorer import load_restorer
from fr_deploy.runtime import doctor
from fr_deploy.runtime.remembered import FILE, fastest, remember
from fr_deploy.runtime.select import Request
from fr_deploy.runtime.torch_backend import TorchBackend


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "SECONDS", 0.05)
    torch.manual_seed(0)
    save_bundle(LafrModel(PRESETS["lafr-toy"]), tmp_path / "toy")
    return tmp_path / "toy"


@pytest.mark.slow
def test_every_backend_is_tried_and_the_faster_one_remembered(bundle: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--model", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    on_cpu = {check["backend"]: check for check in document["backends"] if check["device"] == "cpu"}
    assert set(on_cpu) == {"torch-eager", "onnxruntime"}
    assert all(check["works"] and check["milliseconds"] > 0 for check in on_cpu.values())
    assert document["packages"]["torch"] == torch.__version__
    assert bool(document["gpus"]) != bool(document["no_gpu"])
    best = min(on_cpu.values(), key=lambda check: check["milliseconds"])["backend"]
    graph = load_graph(bundle)
    assert fastest(graph) == best
    # And is what "auto" runs.
    for name in ("torch-eager", "onnxruntime"):
        other = "onnxruntime" if name == "torch-eager" else "torch-eager"
        assert remember(graph, {name: 1.0, other: 2.0}) == name
        restorer = load_restorer(bundle, request=Request(device="cpu"))
        assert restorer.device == f"cpu, fp32, {name}"
        face = np.full((1, 64, 64, 3), 90, np.uint8)
        assert np.abs(restorer(face).astype(int) - graph(torch.from_numpy(face)).numpy()).max() <= 1


def test_a_backend_that_fails_or_lies_is_named_with_its_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(doctor, "onnx_backend", absent)
    text = CliRunner().invoke(main, ["doctor", "--model", str(bundle)]).output
    assert "ok  torch-eager" in text
    assert "no  onnxruntime" in text
    assert "OSError: no such library" in text

    class Wrong(TorchBackend):
        def run(self, faces: torch.Tensor) -> torch.Tensor:
            return super().run(faces).flip(1)

    graph = load_graph(bundle)
    monkeypatch.setattr(doctor, "onnx_backend", lambda *_, **__: Wrong(graph))
    text = CliRunner().invoke(main, ["doctor", "--model", str(bundle)]).output
    assert "its picture is" in text
    assert fastest(graph) == "torch-eager"


def test_none_at_all_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_candidates", lambda *_: [])
    done = CliRunner().invoke(main, ["doctor", "--model", str(bundle)])
    assert done.exit_code == 6
    assert "no backend works here" in done.output


def test_a_damaged_memory_is_measured_anew(bundle: Path) -> None:
    graph = load_graph(bundle)
    remember(graph, {"onnxruntime": 1.0, "torch-eager": 2.0})
    (file,) = bundle.parent.glob(f"cache/{FILE}")
    file.write_text("{")
    assert fastest(graph) == "torch-eager"
