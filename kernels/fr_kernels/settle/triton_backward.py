"""Gradient to the bias of a settled picture in Triton, from channels_last (formula: `reference.py`).

    1  sums   PART [B x tiles, C]   sums of dy over a tile of pixels, without the padding; dy read once
    2  sum    dbias [C]             sums over the tiles, in a fixed order (`fr_kernels.layer_norm`)

The gradients to x and residual are dy itself, or its crop, a view.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Specialization, launch
from fr_kernels.layer_norm.triton_backward import TILES, sum_of_tiles
from fr_kernels.settle.triton_impl import form, grid_of, settings_of


@triton.jit
def sums_kernel(
    DY, PART,
    height, width, C,
    PAD: tl.constexpr, STEPS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x PIXELS pixels x CHANNELS channels of one image. height, width: without the padding."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for step in range(STEPS):
        pixel = (tl.program_id(0) * STEPS + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < height * width)[:, None] & (channel < C)[None, :]
        source = image * height * width + pixel
        if PAD:
            row, column = pixel // width, pixel % width
            source = (image * (height + 1) + row) * (width + 1) + column
        offset = (source * C)[:, None] + channel[None, :]
        total += tl.load(DY + offset, mask=inside, other=0.0).to(tl.float32)
    part = (image * tl.num_programs(0) + tl.program_id(0)) * C + channel
    tl.store(PART + part, tl.sum(total, 0), mask=channel < C)


def settle_backward(grad: Tensor, bias: Tensor, pad: bool) -> Tensor:
    """See `reference.settle_backward`; two launches."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = grad.shape
    height, width = height - pad, width - pad
    settings = settings_of("sums", channels, grad)
    tiles, _, _ = grid_of(settings, height * width, channels, batch)
    steps = triton.next_power_of_2(max(triton.cdiv(batch * tiles, TILES), 1))
    tiles = triton.cdiv(tiles, steps)
    part = torch.empty((batch * tiles, channels), dtype=torch.float32, device=grad.device)
    grid = (tiles, triton.cdiv(channels, settings.blocks["CHANNELS"]), batch)
    launch(
        sums_kernel, grid, grad, part, height, width, channels,
        settings=settings, PAD=pad, STEPS=steps,
    )  # fmt: skip
    return sum_of_tiles("settle", part, bias)


def specializations() -> list[Specialization]:
    """A padded picture of 512 x 512 and one of 64 x 64; the sum over the tiles is layer_norm's."""
    return [
        form(sums_kernel, what, dtype, {"PAD": pad, "STEPS": steps}, (pad, dtype) == (True, "fp16"))
        for what, pad, steps, dtype in (
            ("512 x 512 pad", True, 16, "fp16"),
            ("64 x 64", False, 1, "fp16"),
            ("512 x 512 pad", True, 16, "fp32"),
        )
    ]
