"""What `fr_kernels.tune` measures of BoostHub attention: the SD 2.1 UNet at 512 px, and other head widths."""

from typing import Any

import torch

from fr_kernels.boosthub_attention import reference, triton_impl
from fr_kernels.launch import Tunable

# L = S = S_hub, heads, head width; one image.
HALF = ((4096, 5, 64), (256, 20, 64), (4096, 8, 40), (1024, 5, 128))
SINGLE = ((1024, 10, 64), (1024, 5, 128))
SMALL = ((40, 2, 24),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward at each shape."""
    kinds = ((torch.float16, SMALL if small else HALF), (torch.float32, SMALL if small else SINGLE))
    return [t for dtype, shapes in kinds for shape in shapes for t in _both(dtype, *shape)]


def _both(dtype: torch.dtype, rows: int, heads: int, width: int) -> list[Tunable]:
    def forward(device: torch.device) -> tuple[Any, ...]:
        sides = [torch.randn(1, rows, heads, width, device=device).to(dtype) for _ in range(6)]
        return *sides, torch.tensor(0.7, device=device), True

    def backward(device: torch.device) -> tuple[Any, ...]:
        *given, _ = forward(device)
        grad = torch.randn(1, rows, 2, heads, width, device=device).to(dtype)
        return grad, *given, *reference.boosthub_attention(*given)

    name = f"{dtype} L={rows} H={heads} D={width}".removeprefix("torch.")
    return [
        Tunable(
            f"forward {name}",
            forward,
            triton_impl.boosthub_attention,
            lambda *given: reference.boosthub_attention(*given[:-1]),
        ),
        Tunable(
            f"backward {name}",
            backward,
            triton_impl.boosthub_attention_backward,
            lambda *given: reference.boosthub_attention_backward(*given[:8]),
        ),
    ]
