"""LoRAs fused into a bundle: the graph, the papers' model, ONNX and the commands all see them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from fr_deploy.bundle import load_bundle, load_graph, read_bundle, save_bundle
from fr_deploy.cli import main
from fr_deploy.errors import ModelError
from fr_deploy.manifest import parse_manifest
from fr_deploy.models.lora import LoraFile
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.restorer import load_restorer
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.onnx_backend import OnnxBackend
from fr_export.cache import cached_onnx
from lora_cases import CONVOLUTIONS, LINEARS, adapted, peft_folder, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle and a LoRA on its convolutions and attention, `lora`."""
    folder = tmp_path_factory.mktemp("toy")
    save_bundle(toy(), folder / "bundle")
    unet = load_bundle(folder / "bundle").unet
    peft_folder(folder / "lora", unet, target_modules=[*CONVOLUTIONS, *LINEARS], r=2)
    return folder


def picture(model: torch.nn.Module, faces: Tensor, dtype: torch.dtype) -> Tensor:
    return (model(faces.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1) + 1) * 127.5


def scaled(beside: torch.nn.Module, scale: float) -> None:
    """As peft scales a LoRA that is not fused."""
    for layer in beside.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(scale)


def decibels(got: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (got - wanted).square().mean()))


def test_the_fused_graph_is_the_model_with_its_loras_in_float64(folder: Path) -> None:
    model = load_bundle(folder / "bundle").double()
    faces = random_pictures(model.preset.size, 2)
    plain = picture(model, faces, torch.float64)
    scaled(adapted(model.unet, target_modules=[*CONVOLUTIONS, *LINEARS], r=2), 0.25)
    wanted = picture(model, faces, torch.float64)
    bundle = read_bundle(folder / "bundle", loras=[LoraFile(folder / "lora", 0.25)])
    graph = RestorationGraph(bundle.preset).double()
    graph.fold(bundle.tensors, bundle.time_embedding, bundle.scaling)
    assert decibels(graph.picture(faces), wanted) > 120, "float32 is all that is lost"
    assert decibels(plain, wanted) < 40, "the LoRA changes the picture"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [(CONVOLUTIONS, 4, 1), (LINEARS, 16, 256)],
    ids=["convolutions", "linear layers"],
)
def test_lafr_mini_with_a_lora_is_90_decibels_from_its_unfused_model(
    targets: list[str], rank: int, alpha: int, tmp_path: Path
) -> None:
    model = load_bundle("lafr-mini")
    faces = random_pictures(model.preset.size, 1)
    peft_folder(tmp_path, model.unet, target_modules=targets, r=rank, lora_alpha=alpha)
    scaled(model.unet, 0.5)
    with torch.no_grad():
        plain = load_graph("lafr-mini").picture(faces)
        wanted = picture(model, faces, torch.float32)
        bundle = read_bundle("lafr-mini", loras=[LoraFile(tmp_path, 0.5)])
        assert decibels(load_graph(bundle).picture(faces), wanted) >= 90
        assert decibels(picture(load_bundle(bundle), faces, torch.float32), wanted) >= 90
    assert decibels(plain, wanted) < 80, "the LoRA changes the picture"


def test_every_way_of_restoring_sees_the_lora(folder: Path) -> None:
    faces = random_pictures(64, 2).numpy()
    bundle = read_bundle(folder / "bundle", loras=[LoraFile(folder / "lora")])
    restore = load_restorer(bundle)
    assert restore.name == f"{folder / 'bundle'} + lora:1"
    assert np.array_equal(restore(faces), load_graph(bundle)(torch.from_numpy(faces)).numpy())
    assert not np.array_equal(restore(faces), load_restorer(folder / "bundle")(faces))
    drawn = load_restorer(bundle, latent="sample")(faces)
    assert not np.array_equal(drawn, load_restorer(folder / "bundle", latent="sample")(faces))


def test_an_export_of_another_lora_has_another_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_export.cache.export_onnx", lambda _, path, **__: path.touch())
    lora = folder / "lora"
    loras = ((), (LoraFile(lora),), (LoraFile(lora, 0.5),), (LoraFile(lora),))
    graphs = [load_graph(read_bundle(folder / "bundle", loras=given)) for given in loras]
    plain, whole, half, again = (cached_onnx(graph, tmp_path) for graph in graphs)
    assert len({plain, whole, half}) == 3
    assert again == whole


def test_errors_name_the_model(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"\(model: lafr-mini\)$"):
        read_bundle("lafr-mini", loras=[LoraFile(folder / "lora")])


def test_restore_fuses_and_says_how_exactly(tmp_path: Path) -> None:
    lora = peft_folder(tmp_path / "lora", load_bundle("lafr-mini").unet)
    Image.fromarray(random_pictures(512, 1)[0].numpy()).save(tmp_path / "face.png")
    base = ["restore", "--aligned", str(tmp_path / "face.png"), "-o"]
    done = CliRunner().invoke(main, [*base, str(tmp_path / "a"), "--lora", f"{lora}:0.5"])
    assert done.exit_code == 0, done.output
    assert f"fused {lora} x 0.5 into" in done.stdout
    assert "of float64, outputs within" in done.stdout
    assert "model lafr-mini + lora:0.5 on" in done.stdout
    bundle = read_bundle("lafr-mini", loras=[LoraFile(lora, 0.5)])
    wanted = load_graph(bundle)(torch.from_numpy(np.array(Image.open(tmp_path / "face.png")))[None])
    got = np.asarray(Image.open(tmp_path / "a" / "face.png")).astype(int)
    assert np.abs(got - wanted[0].numpy()).max() <= 1


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (["nowhere"], 5, "no LoRA 'nowhere'"),
        (["nowhere:nan"], 2, "the scale of nowhere is nan"),
        (["{lora}", "{lora}:0.5"], 2, "given twice"),
        (["{lora}"], 5, "(model: lafr-mini)"),
    ],
)
def test_restore_refuses(
    given: list[str], code: int, text: str, folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (512, 512)).save(tmp_path / "face.png")
    loras = [f"--lora={one.format(lora=folder / 'lora')}" for one in given]
    command = ["restore", str(tmp_path / "face.png"), "-o", str(tmp_path / "out"), *loras]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, text in done.stderr) == (code, True), done.stderr


@pytest.mark.slow
def test_export_fuses_and_onnxruntime_computes_the_fused_graph(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x"
    given = ["--lora", f"{folder / 'lora'}", "-o", str(out), "--whole"]
    done = CliRunner().invoke(main, ["export", str(folder / "bundle"), *given])
    assert done.exit_code == 0, done.output
    (lora,) = parse_manifest((out / "manifest.json").read_bytes()).loras
    assert (lora.name, lora.scale) == ("lora", 1.0)
    assert done.stdout.startswith(f"fused {folder / 'lora'} x 1 into")
    faces = random_pictures(64, 2)
    fused = load_graph(read_bundle(folder / "bundle", loras=[LoraFile(folder / "lora")]))
    with OnnxBackend(out / "whole.onnx") as backend:
        got = backend.run(faces).int()
    assert (got - fused(faces).int()).abs().max() <= 1
    assert (got - load_graph(folder / "bundle")(faces).int()).abs().max() > 10


def test_fusing_needs_neither_diffusers_nor_peft(folder: Path) -> None:
    code = (
        "import sys; sys.modules['diffusers'] = sys.modules['peft'] = None\n"
        "from pathlib import Path; from fr_deploy.bundle import load_graph, read_bundle\n"
        "from fr_deploy.models.lora import LoraFile\n"
        "bundle = read_bundle(sys.argv[1], loras=[LoraFile(Path(sys.argv[2]))])\n"
        "load_graph(bundle); print(bundle.fused)\n"
    )
    command = [sys.executable, "-c", code, str(folder / "bundle"), str(folder / "lora")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fused ")
