"""The smallest bundle that has everything the exporters meet, and its export."""

from dataclasses import replace
from pathlib import Path

import torch

from fr_deploy.bundle import save_bundle
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS

TINY = replace(
    PRESETS["lafr-toy"], name="tiny", size=32, vae_channels=(16,), vae_attention=False,
    unet_channels=(16,), unet_attention=(False,),
)  # fmt: skip


def tiny_bundle(folder: Path) -> Path:
    torch.manual_seed(0)
    save_bundle(LafrModel(TINY), folder)
    return folder
