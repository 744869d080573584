"""Which upsampling convolutions the CPU's form takes."""

import torch
from torch import Tensor

LEAST_CHANNELS = 16
"""Inputs, and outputs of a phase: of fewer, vectors and panels are mostly empty."""
LEAST_PIXELS = 64
"""Of the input: 8 x 8 of 128 channels take two cores of a Zen 3 0.24 ms, and as a transposed convolution 0.42."""
MOST_BYTES = 64 << 20
"""Of a transformed weight, enough for 512 x 512 channels."""


def unfit(*tensors: Tensor | None) -> str:
    """Why it cannot take them; empty when it can."""
    given = (t.dtype for t in tensors if t is not None)
    wrong = next((dtype for dtype in given if dtype != torch.float32), None)
    return "" if wrong is None else f"a tensor is {wrong}, and it computes in float32 alone"


def slow(x: Tensor, outputs: int) -> str:
    """Why it would gain little; empty when it gains much."""
    inputs, height, width = x.shape[1:]
    if min(outputs, inputs) < LEAST_CHANNELS:
        return f"{inputs} to {outputs} channels; {LEAST_CHANNELS} are worth it"
    if (size := 4 * 16 * 4 * outputs * inputs) > MOST_BYTES:
        return f"its transformed weight would be {size >> 20} MiB; {MOST_BYTES >> 20} are worth it"
    few = height * width < LEAST_PIXELS
    return f"{height} x {width} pixels are fewer than {LEAST_PIXELS}" if few else ""
