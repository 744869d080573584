"""What `fr_kernels.tune` measures of layer normalisation: the UNet's three widths, one and 8 images."""

from typing import Any

import torch

from fr_kernels.launch import Tunable
from fr_kernels.layer_norm import reference, triton_backward, triton_impl

EPS = 1e-5
# rows, channels
SHAPES = ((4096, 320), (1024, 640), (256, 1280), (8 * 4096, 320), (8 * 1024, 640), (8 * 256, 1280))
SMALL = ((7, 24),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward at each shape, with a residual and a bias."""
    shapes = SMALL if small else SHAPES
    dtypes = (torch.float16, torch.float32)
    return [t for dtype in dtypes for shape in shapes for t in _both(dtype, *shape)]


def _both(dtype: torch.dtype, rows: int, channels: int) -> tuple[Tunable, Tunable]:
    def made(device: torch.device, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def forward(device: torch.device) -> tuple[Any, ...]:
        x, residual = (made(device, rows, channels) for _ in range(2))
        return x, residual, made(device, channels), EPS

    def backward(device: torch.device) -> tuple[Any, ...]:
        dy, h, dh = (made(device, rows, channels) for _ in range(3))
        return dy, h, made(device, channels), dh, EPS

    name = f"{dtype} [{rows}, {channels}]".removeprefix("torch.")
    return (
        Tunable(f"forward {name}", forward, triton_impl.layer_norm, reference.layer_norm),
        Tunable(
            f"backward {name}",
            backward,
            triton_backward.layer_norm_backward,
            reference.layer_norm_backward,
        ),
    )
