"""What `fr_kernels.tune` measures of group normalisation: the VAE decoder's and the UNet's widths, with a residual."""

from typing import Any

import torch

from fr_kernels.group_norm_silu import reference, triton_backward, triton_impl
from fr_kernels.launch import Tunable

EPS = 1e-6
# channels, side of the picture
SHAPES = ((128, 512), (256, 256), (512, 128), (320, 64), (640, 32), (1280, 16), (2560, 16))
# One launch, and two.
SMALL = ((24, 3), (24, 31))


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward at each shape, one image."""
    shapes = SMALL if small else SHAPES
    dtypes = (torch.float16, torch.float32)
    groups = 4 if small else 32
    return [t for dtype in dtypes for shape in shapes for t in _both(dtype, *shape, groups)]


def _both(dtype: torch.dtype, channels: int, side: int, groups: int) -> tuple[Tunable, Tunable]:
    def pictures(count: int, device: torch.device) -> list[torch.Tensor]:
        size = (1, channels, side, side)
        last = torch.channels_last
        made = [torch.randn(size, device=device).to(dtype) for _ in range(count)]
        return [picture.to(memory_format=last) for picture in made]

    def forward(device: torch.device) -> tuple[Any, ...]:
        x, residual = pictures(2, device)
        w, b = (torch.randn(channels, device=device).to(dtype) for _ in range(2))
        return x, w, b, groups, EPS, True, residual, None, None, False

    def backward(device: torch.device) -> tuple[Any, ...]:
        given = forward(device)
        _, h, statistics = reference.group_norm_silu(*given)
        return *pictures(2, device), h, *given[1:3], None, statistics, True, 0, False

    name = f"{dtype} C={channels} {side} x {side}".removeprefix("torch.")
    return (
        Tunable(f"forward {name}", forward, triton_impl.group_norm_silu, reference.group_norm_silu),
        Tunable(
            f"backward {name}",
            backward,
            triton_backward.group_norm_silu_backward,
            reference.group_norm_silu_backward,
        ),
    )
