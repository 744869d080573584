"""The 3x3 convolution on a CPU: `csrc/conv3x3.cpp`, Winograd's F(4x4, 3x3) in float32 (formula: `winograd.h`)."""

import torch
from torch import Tensor

from fr_kernels import native, winograd

FORM = winograd.Form("conv3x3", 4, 3, (0.0, 0.75, -0.75, 1.5, -1.5))


def pack(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> what `conv3x3` reads, as `winograd.pack`."""
    return winograd.pack(FORM, weight[None])


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    padding: int,
    packed: Tensor | None,
) -> Tensor:
    """See `reference.conv3x3`."""
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    outputs, sides = len(weight), (height + 2 * padding - 2, width + 2 * padding - 2)
    if packed is None:
        packed = pack(weight)
    packed = winograd.checked(FORM, packed, 1, outputs, inputs)
    y = torch.empty(batch, outputs, *sides, memory_format=torch.channels_last)
    threads = native.threads()
    tiles = FORM.tiles(batch, *sides)
    panels = winograd.panels_of(tiles, threads, packed)
    scratch = torch.empty(threads * winograd.scratch_of(FORM, inputs, outputs, panels))
    bias = None if bias is None else bias.contiguous()
    native.call(
        FORM.source, "conv3x3", x, packed, bias, residual, y, scratch,
        batch, height, width, inputs, outputs, padding, panels, threads,
    )  # fmt: skip
    return y
