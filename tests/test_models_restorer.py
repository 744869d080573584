"""The restoration graph computes the model: in float64 to the last digits, in float32 far below a grey level."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fr_deploy.bundle import load_bundle, load_graph, save_bundle
from fr_deploy.errors import ModelError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.layers import TransposedUpsample, Upsample, use_kernels
from fr_deploy.models.presets import PRESETS, Preset
from fr_deploy.models.restorer import RestorationGraph, most_at_once
from fr_deploy.models.weights import Weights
from fr_kernels.native import obstacle
from kernel_checks import NO_COMPILER

TOY = PRESETS["lafr-toy"]
VARIANTS = {
    "toy": TOY,
    "more tokens than channels": replace(TOY, prompt_tokens=30),
    "whole pixels, more layers": replace(TOY, patch=1, size=32, vae_layers=2, unet_layers=2),
    "no attention in the autoencoder": replace(TOY, vae_attention=False),
    "all of the latent from codes": replace(TOY, adapter_share=1.0, adapter_blocks=2),
}


def random_model(preset: Preset) -> LafrModel:
    torch.manual_seed(0)
    return LafrModel(preset).eval().requires_grad_(False)


def graph_of(model: LafrModel, dtype: torch.dtype) -> RestorationGraph:
    graph = RestorationGraph(model.preset).to(dtype)
    return graph.fold(model.state_dict(), model.time_embedding(), model.scaling)


def faces(preset: Preset, count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (count, preset.size, preset.size, 3), dtype=torch.uint8)


def picture(model: LafrModel, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    return (model(pixels.permute(0, 3, 1, 2).to(dtype) / 127.5 - 1) + 1) * 127.5


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
@pytest.mark.parametrize("preset", VARIANTS.values(), ids=VARIANTS)
def test_the_graph_is_the_model_in_float64(preset: Preset, kernels: bool) -> None:
    model, pixels = random_model(preset).double(), faces(preset)
    expected = picture(model, pixels, torch.float64)
    got = graph_of(model, torch.float64).use_kernels(kernels).picture(pixels)
    assert (got - expected).abs().max() <= 1e-13 * expected.abs().max()


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
def test_lafr_mini_in_float32_is_90_decibels_from_the_unfolded_model(kernels: bool) -> None:
    model = load_bundle("lafr-mini")
    pixels = faces(model.preset, 1)
    with torch.no_grad():
        expected = picture(model, pixels, torch.float32)
        got = graph_of(model, torch.float32).use_kernels(kernels).picture(pixels)
    assert 10 * torch.log10(255**2 / (got - expected).square().mean()) >= 90


@pytest.mark.skipif(bool(obstacle("conv3x3")), reason=NO_COMPILER)
def test_the_cpus_kernels_cost_no_accuracy() -> None:
    """Root mean square error against float64: at most twice that of torch's operators in float32."""
    model = load_bundle("lafr-mini")
    pixels = faces(model.preset, 1)
    exact = graph_of(model, torch.float64).picture(pixels)
    torchs, ours = (
        (graph_of(model, torch.float32).use_kernels(kernels).picture(pixels) - exact)
        .square().mean().sqrt()
        for kernels in (False, True)
    )  # fmt: skip
    assert ours != torchs, "they ran"
    assert ours <= 2 * torchs


@pytest.mark.skipif(bool(obstacle("upsample_conv")), reason=NO_COMPILER)
@pytest.mark.parametrize("layer", [Upsample, TransposedUpsample])
def test_upsampling_on_the_cpus_kernel(layer: type[Upsample] | type[TransposedUpsample]) -> None:
    torch.manual_seed(0)
    conv = {"conv.weight": torch.randn(20, 24, 3, 3) / 15, "conv.bias": torch.randn(20)}
    up = layer(24, 20).requires_grad_(False)
    x = torch.randn(2, 24, 9, 8)
    for factor in (1, 2):  # the packed weight follows the weight
        up.fold(Weights({name: tensor * factor for name, tensor in conv.items()}))
        use_kernels(up, False)
        expected = up(x).settled()
        use_kernels(up, True)
        got = up(x)
        assert got.bias is None, "the kernel added it"
        torch.testing.assert_close(got.settled(), expected, rtol=0, atol=5e-6)


def test_bytes_in_and_bytes_out() -> None:
    graph, pixels = graph_of(random_model(TOY), torch.float32), faces(TOY, 3)
    out = graph(pixels)
    assert (out.shape, out.dtype) == (pixels.shape, torch.uint8)
    whole = graph.picture(pixels)
    assert torch.equal(out.permute(0, 3, 1, 2).float(), whole.round().clamp(0, 255))


def test_a_missing_weight_is_named() -> None:
    model = random_model(TOY)
    for name in ("unet.mid_block.resnets.0.conv1.weight", "vae.encoder.conv_in.bias"):
        tensors = {k: v for k, v in model.state_dict().items() if k != name}
        with pytest.raises(ModelError, match=re.escape(name)):
            RestorationGraph(TOY).fold(tensors, model.time_embedding(), model.scaling)


def test_a_weight_that_does_not_fit_is_named() -> None:
    model = random_model(TOY)
    name = "vae.decoder.conv_norm_out.weight"

    def folded(changed: dict[str, Tensor]) -> None:
        tensors = model.state_dict() | changed
        RestorationGraph(TOY).fold(tensors, model.time_embedding(), model.scaling)

    with pytest.raises(ModelError, match=re.escape(f"NaN or infinity in {name}")):
        folded({name: torch.full((16,), torch.nan)})
    with pytest.raises(ModelError, match=r"conv_norm_out.* another shape than preset 'lafr-toy'"):
        folded({name: torch.ones(17)})
    with pytest.raises(ModelError, match=r"1 tensors belong to no layer: .*'vae.stray'"):
        folded({"vae.stray": torch.ones(1)})


def test_a_bundle_restores_without_diffusers(tmp_path: Path) -> None:
    save_bundle(random_model(TOY), tmp_path / "toy")
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import numpy as np; from fr_deploy.restorer import load_restorer\n"
        f"out = load_restorer({str(tmp_path / 'toy')!r})(np.zeros((1, 64, 64, 3), np.uint8))\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, out)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = load_graph(tmp_path / "toy")(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert done.returncode == 0, done.stderr
    # The one on the CPU's own kernels, the other on torch's: a rounding apart.
    apart = torch.from_numpy(np.load(tmp_path / "out.npy")).int() - expected.int()
    assert apart.abs().max() <= 1


def test_a_large_batch_passes_the_autoencoder_in_parts() -> None:
    """No picture in it may have 2^31 values, which kernels count with 32 bits."""
    assert {name: most_at_once(preset) for name, preset in PRESETS.items()} == {
        "lafr-sd21": 16,
        "lafr-mini": 512,
        "lafr-toy": 32768,
    }
    graph, pixels = graph_of(random_model(TOY), torch.float64), faces(TOY, 5)
    whole = graph.picture(pixels)
    graph.most = 2
    assert (graph.picture(pixels) - whole).abs().max() <= 1e-10
