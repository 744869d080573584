"""What `fr_kernels.tune` measures of settling: the encoder's padded pictures, the UNet's, forward and backward."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.launch import Tunable
from fr_kernels.settle import reference, triton_backward, triton_impl

# channels, side of the picture, padded
SHAPES = ((128, 512, True), (256, 256, True), (512, 128, True), (640, 32, False), (1280, 16, False))
SMALL = ((24, 5, True),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward with a residual and a bias, and the bias's gradient, at each shape, one image."""
    shapes = SMALL if small else SHAPES
    dtypes = (torch.float16, torch.float32)
    return [t for dtype in dtypes for shape in shapes for t in _both(dtype, *shape)]


def _both(dtype: torch.dtype, channels: int, side: int, pad: bool) -> tuple[Tunable, Tunable]:
    def picture(device: torch.device, size: int) -> Tensor:
        made = torch.randn(1, channels, size, size, device=device).to(dtype)
        return made.to(memory_format=torch.channels_last)

    def bias(device: torch.device) -> Tensor:
        return torch.randn(channels, device=device).to(dtype)

    def forward(device: torch.device) -> tuple[Any, ...]:
        return picture(device, side), picture(device, side), bias(device), pad, False

    def backward(device: torch.device) -> tuple[Any, ...]:
        return picture(device, side + pad), bias(device), pad

    name = f"{dtype} C={channels} {side} x {side}".removeprefix("torch.")
    return (
        Tunable(
            f"forward {name}",
            forward,
            lambda *given: (triton_impl.settle(*given),),
            lambda *given: (reference.settle(*given),),
        ),
        Tunable(
            f"backward {name}",
            backward,
            lambda *given: (triton_backward.settle_backward(*given),),
            lambda *given: (reference.settle_backward(*given),),
        ),
    )
