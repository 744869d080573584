"""What `fr_kernels.tune` measures of GEGLU: the UNet's three widths, one and 8 images."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.geglu import reference, triton_impl
from fr_kernels.launch import Tunable

# rows, D
SHAPES = (
    (4096, 1280),
    (1024, 2560),
    (256, 5120),
    (8 * 4096, 1280),
    (8 * 1024, 2560),
    (8 * 256, 5120),
)
SMALL = ((7, 24),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward at each shape."""
    shapes = SMALL if small else SHAPES
    dtypes = (torch.float16, torch.float32)
    return [t for dtype in dtypes for shape in shapes for t in _both(dtype, *shape)]


def _both(dtype: torch.dtype, rows: int, width: int) -> tuple[Tunable, Tunable]:
    def made(*widths: int) -> Any:
        return lambda device: tuple(
            torch.randn(rows, size, device=device).to(dtype) for size in widths
        )

    def forward(x: Tensor) -> tuple[Tensor]:
        return (triton_impl.geglu(x),)

    def backward(grad: Tensor, x: Tensor) -> tuple[Tensor]:
        return (triton_impl.geglu_backward(grad, x),)

    name = f"{dtype} [{rows}, {2 * width}]".removeprefix("torch.")
    return (
        Tunable(f"forward {name}", made(2 * width), forward, lambda x: (reference.geglu(x),)),
        Tunable(
            f"backward {name}",
            made(width, 2 * width),
            backward,
            lambda grad, x: (reference.geglu_backward(grad, x),),
        ),
    )
