"""Which convolutions the CPU's form takes."""

import torch
from torch import Tensor

LEAST_INPUTS = 48
"""Channels. Fewer make the direct sum so short that a transformed one leaves the budget: largest share of four draws at
64 x 64 1.28 with 16, 1.09 with 24, 0.95 with 32, 0.77 with 48."""
LEAST_PIXELS = 256
"""Of an output of 16 tiles: for smaller ones, reading 4 times the weights costs more than it saves."""
OVER_BUDGET_LANES = 16
"""See `inexact`."""
MOST_BYTES = 64 << 20
"""Of a transformed weight, enough for 640 x 640 channels: all of Stable Diffusion 2.1's would be 10 GB, and the widest
gain 1.3 x."""


def unfit(x: Tensor, weight: Tensor, others: tuple[Tensor | None, ...]) -> str:
    """Why it cannot take them; empty when it can."""
    given = [t for t in (x, weight, *others) if t is not None]
    wrong = next((t.dtype for t in given if t.dtype != torch.float32), None)
    if wrong is not None:
        return f"a tensor is {wrong}, and it computes in float32 alone"
    if weight.shape[1] < LEAST_INPUTS:
        return f"{weight.shape[1]} input channels are fewer than {LEAST_INPUTS}"
    return ""


def slow(x: Tensor, weight: Tensor, padding: int) -> str:
    """Why it would gain little; empty when it gains much."""
    size = 16 * weight.shape[0] * weight.shape[1] * 9
    if size > MOST_BYTES:
        return f"its transformed weight would be {size >> 20} MiB; {MOST_BYTES >> 20} are worth it"
    height, width = (side + 2 * padding - 2 for side in x.shape[2:])
    few = height * width < LEAST_PIXELS
    return f"{height} x {width} pixels are fewer than {LEAST_PIXELS}" if few else ""


def inexact() -> str:
    """Why its error on the CPU at hand may be more than twice torch's; empty when it is not, or nothing compiles here.

    In 16 lanes, where oneDNN has AVX-512 too and adds up blocks of 16 channels: root mean square 0.22e-6 of the
    output's deviation (64 channels) in place of 0.65e-6 with AVX2. Winograd's is 0.49e-6, of which 0.33e-6 are the
    transforms' roundings, and its largest error up to 1.20 times what is allowed.
    """
    from fr_kernels import native, winograd

    if native.obstacle("conv3x3") or winograd.lanes("conv3x3") < OVER_BUDGET_LANES:
        return ""
    return "with AVX-512 oneDNN's direct sums are more than twice as exact"
