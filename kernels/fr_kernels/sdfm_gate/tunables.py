"""What `fr_kernels.tune` measures of HDRFace's feature gate: DINOv3 L's tokens of 224 and 512 px, one and 8 images."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.launch import Tunable
from fr_kernels.sdfm_gate import reference, triton_backward, triton_impl
from fr_kernels.sdfm_gate.reference import SdfmWeights

# batch, tokens, channels, hidden units
HALF = ((1, 201, 1024, 512), (8, 201, 1024, 512), (1, 1029, 1024, 512), (8, 1029, 1024, 512))
SINGLE = ((1, 201, 1024, 512), (8, 201, 1024, 512))
SMALL = ((1, 5, 20, 12),)


def tunables(small: bool = False) -> list[Tunable]:
    """Forward and backward at each shape."""
    kinds = ((torch.float16, SMALL if small else HALF), (torch.float32, SMALL if small else SINGLE))
    return [t for dtype, shapes in kinds for shape in shapes for t in _both(dtype, *shape)]


def _both(
    dtype: torch.dtype, batch: int, tokens: int, width: int, units: int
) -> tuple[Tunable, Tunable]:
    def made(device: torch.device, *shape: int) -> Tensor:
        return (torch.randn(shape, device=device) * shape[-1] ** -0.5).to(dtype)

    def forward(device: torch.device) -> tuple[Any, ...]:
        sizes = ((units, 3 * width), (units,), (width, units), (width,))
        sizes = ((width,), (width,), *sizes, (units, 3 * width), (units,), (1, units), (1,))
        features = [torch.randn(batch, tokens, width, device=device).to(dtype) for _ in range(2)]
        return *features, [made(device, *size) for size in sizes]

    def backward(device: torch.device) -> tuple[Any, ...]:
        f_sr, f_lr, weights = forward(device)
        _, state = reference.sdfm_gate_with_state(f_sr, f_lr, SdfmWeights(*weights))
        return torch.randn_like(f_sr), f_sr, f_lr, weights, state

    def run(f_sr: Tensor, f_lr: Tensor, weights: list[Tensor]) -> list[Tensor]:
        out, state = triton_impl.sdfm_gate(f_sr, f_lr, weights)
        return [out, *state]

    name = f"{dtype} B={batch} N={tokens} C={width}".removeprefix("torch.")
    return (
        Tunable(
            f"forward {name}",
            forward,
            run,
            lambda *given: torch.ops.fr_kernels.sdfm_gate(*given, "reference"),
        ),
        Tunable(
            f"backward {name}",
            backward,
            triton_backward.sdfm_gate_backward,
            lambda *given: torch.ops.fr_kernels.sdfm_gate_backward(*given, "reference"),
        ),
    )
