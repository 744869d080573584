"""The paper's sizes: counted on the meta device, so that nothing is allocated."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from fr_deploy.models.adapter import CodebookAdapter
from fr_deploy.models.lafr import build_unet, build_vae
from fr_deploy.models.presets import PRESETS, Preset
from tests_support import SD21_UNET, SD21_VAE

SD21 = PRESETS["lafr-sd21"]


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sd21_has_every_key_and_shape_of_the_published_configs() -> None:
    with torch.device("meta"):
        ours_unet, ours_vae = build_unet(SD21), build_vae(SD21)
        unet, vae = UNet2DConditionModel.from_config(SD21_UNET), AutoencoderKL.from_config(SD21_VAE)
    assert shapes(ours_unet) == shapes(unet)
    assert shapes(ours_vae) == shapes(vae)
    assert count(ours_unet) == 865_910_724
    # 34.16 M and 49.49 M are TAESD's published counts; the two quant convolutions add 92 weights.
    assert count(ours_vae) == 34_163_592 + 49_490_179 + 92


def test_adapter_has_the_papers_size() -> None:
    with torch.device("meta"):
        adapter = CodebookAdapter(SD21)
    assert round(count(adapter) / 1e6, 2) == 5.14
    assert adapter.codebook.weight.shape == (1024, 256)


def test_conv_lora_targets_of_the_paper_count_2_3_million() -> None:
    """LAFR: r = 4 on conv, conv1, conv2, conv_in, conv_shortcut, conv_out makes 2.3 M parameters."""
    names = {"conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"}
    with torch.device("meta"):
        unet = build_unet(SD21)
    convs = [
        m
        for name, m in unet.named_modules()
        if isinstance(m, torch.nn.Conv2d) and name.rsplit(".", 1)[-1] in names
    ]
    rank = 4
    total = sum(
        rank * (c.in_channels * c.kernel_size[0] * c.kernel_size[1] + c.out_channels) for c in convs
    )
    assert len(convs) == 66
    assert round(total / 1e6, 2) == 2.33


def test_embedded_preset_fits_its_limits() -> None:
    with torch.device("meta"):
        from fr_deploy.models.lafr import LafrModel

        model = LafrModel(PRESETS["lafr-mini"])
    assert count(model) <= 8_000_000


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda p: p.name)
def test_preset_widths_divide(preset: Preset) -> None:
    for width in (*preset.vae_channels, *preset.unet_channels, preset.adapter_hidden):
        assert width % preset.groups == 0
    for width in preset.unet_channels:
        assert width % preset.head_dim == 0 or width < preset.head_dim
