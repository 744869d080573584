"""The upsampling convolution on a CPU: `csrc/upsample_conv.cpp`, Winograd's F(3x3, 2x2) (formula: `winograd.h`)."""

import torch
from torch import Tensor

from fr_kernels import native, winograd

FORM = winograd.Form("upsample_conv", 3, 2, (0.0, 1.0, -1.0))
PHASES = 4


def pack(weight: Tensor) -> Tensor:
    """[4 O, C, 2, 2] -> what `upsample_conv` reads, as `winograd.pack`."""
    return winograd.pack(FORM, weight.unflatten(0, (PHASES, -1)))


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """See `reference.upsample_conv`."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    outputs = len(weight) // PHASES
    if packed is None:
        packed = pack(weight)
    packed = winograd.checked(FORM, packed, PHASES, outputs, inputs)
    y = torch.empty(batch, outputs, 2 * height, 2 * width, memory_format=torch.channels_last)
    threads = native.threads()
    tiles = FORM.tiles(batch, height + 1, width + 1)
    panels = winograd.panels_of(tiles, threads, packed)
    scratch = torch.empty(threads * winograd.scratch_of(FORM, inputs, outputs, panels))
    bias = None if bias is None else bias.contiguous()
    native.call(
        FORM.source, "upsample_conv", x, packed, bias, y, scratch,
        batch, height, width, inputs, outputs, panels, threads,
    )  # fmt: skip
    return y
