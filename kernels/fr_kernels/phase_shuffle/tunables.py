"""What `fr_kernels.tune` measures of the phase shuffle: the decoder's two upsamplers, forward and backward."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.launch import Tunable
from fr_kernels.phase_shuffle import reference, triton_impl

# A gather moves bits: bfloat16 is float16.
DTYPES = (torch.float16, torch.float32)
SHAPES = ((1, 256, 512, 512), (1, 512, 256, 256))
SMALL = ((1, 12, 6, 4),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward, by shape of the output [B, C, 2H, 2W]."""
    shapes = SMALL if small else SHAPES
    return [t for shape in shapes for dtype in DTYPES for t in _both(shape, dtype)]


def _both(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tunable]:
    batch, channels, height, width = shape
    folded = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)

    def random(*size: int) -> Any:
        return lambda device: (_channels_last(torch.randn(size, device=device).to(dtype)),)

    def forward(y: Tensor) -> tuple[Tensor]:
        return (triton_impl.phase_shuffle(y),)

    def backward(grad: Tensor) -> tuple[Tensor]:
        return (triton_impl.phase_shuffle_backward(grad),)

    name = f"{dtype} {list(shape)}".removeprefix("torch.")
    return [
        Tunable(
            f"forward {name}", random(*folded), forward, lambda y: (reference.phase_shuffle(y),)
        ),
        Tunable(
            f"backward {name}",
            random(*shape),
            backward,
            lambda grad: (reference.phase_shuffle_backward(grad),),
        ),
    ]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)
