"""Shifted pixel shuffle in Triton, channels_last in and out (formula: `reference.py`).

y    [B, H+1, W+1, 4C]   read once, C contiguous channels a pixel
out  [B, 2H, 2W, C]      written once
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import precision, tuned

DEFAULT = Settings({"PIXELS": 32}, num_warps=4, num_stages=1)
SPACE = {"PIXELS": (4, 128), "num_warps": (1, 16)}


@triton.jit
def gather_index(pixel, W2):
    """Which vector of C channels of its image in y the output pixel is; W2: the output's width."""
    row, column = pixel // W2, pixel % W2
    py, px = row % 2, column % 2
    return ((row // 2 + py) * (W2 // 2 + 1) + column // 2 + px) * 4 + 2 * py + px


@triton.jit
def scatter_index(vector, H2, W2):
    """The output pixel that reads this vector of y, and whether one does (the border has none)."""
    width = W2 // 2 + 1
    phase, pixel = vector % 4, vector // 4
    row, column = pixel // width - phase // 2, pixel % width - phase % 2
    read = (row >= 0) & (row < H2 // 2) & (column >= 0) & (column < W2 // 2)
    return (2 * row + phase // 2) * W2 + 2 * column + phase % 2, read


@triton.jit
def phase_shuffle_kernel(Y, OUT, H2, W2, C, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """One program: PIXELS output pixels of one image, all channels. H2, W2: the output's sides."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    mask = (pixel < H2 * W2)[:, None] & (channel < C)[None, :]
    # 64-bit: 32 x 512 x 512 x 256 elements are 2^31.
    start = image * 4 * (H2 // 2 + 1) * (W2 // 2 + 1) + gather_index(pixel, W2)
    value = tl.load(Y + start[:, None] * C + channel[None, :], mask=mask)
    target = (image * H2 * W2 + pixel) * C
    tl.store(OUT + target[:, None] + channel[None, :], value, mask=mask)


@triton.jit
def phase_shuffle_backward_kernel(
    GRAD, OUT, H2, W2, C, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):
    """One program: PIXELS (pixel, phase) pairs of one image's gradient to y; zero where no output reads y."""
    image = tl.program_id(1).to(tl.int64)
    vectors = 4 * (H2 // 2 + 1) * (W2 // 2 + 1)
    pair = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, CHANNELS)
    mask = (pair < vectors)[:, None] & (channel < C)[None, :]
    source, read = scatter_index(pair, H2, W2)
    start = (image * H2 * W2 + source) * C
    value = tl.load(GRAD + start[:, None] + channel[None, :], mask=mask & read[:, None], other=0.0)
    target = (image * vectors + pair) * C
    tl.store(OUT + target[:, None] + channel[None, :], value, mask=mask)


def phase_shuffle(y: Tensor) -> Tensor:
    """See `reference.phase_shuffle`; one launch."""
    y = y.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = y.shape
    shape = (batch, channels // 4, 2 * (height - 1), 2 * (width - 1))
    out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    _launch(phase_shuffle_kernel, y, out, shape, shape[2] * shape[3])
    return out


def phase_shuffle_backward(grad: Tensor) -> Tensor:
    """See `reference.phase_shuffle_backward`; one launch."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = grad.shape
    shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
    out = torch.empty(
        shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )
    _launch(phase_shuffle_backward_kernel, grad, out, grad.shape, 4 * shape[2] * shape[3])
    return out


def _launch(kernel, source, out, shape, pixels):
    batch, channels, height, width = shape
    meta = {"CHANNELS": triton.next_power_of_2(channels)}
    key = f"{kernel.__name__} C={meta['CHANNELS']} {precision(out.dtype)}"
    settings = tuned("phase_shuffle", key, DEFAULT, SPACE, out.device)
    grid = (triton.cdiv(pixels, settings.blocks["PIXELS"]), batch if channels else 0)
    launch(kernel, grid, source, out, height, width, channels, settings=settings, **meta)


def specializations() -> list[Specialization]:
    """The decoder's upsamplers in half precision, and one float32 form."""
    return [
        Specialization(
            f"{kernel.__name__.removesuffix('_kernel')} {dtype} C={channels}",
            kernel,
            {first: f"*{dtype}", "OUT": f"*{dtype}", "H2": "i32", "W2": "i32", "C": "i32"},
            {"PIXELS": DEFAULT.blocks["PIXELS"], "CHANNELS": channels},
            DEFAULT,
            divisible=("H2", "W2", "C"),
            principal=(dtype, channels) == ("fp16", 256),
        )
        for kernel, first in (
            (phase_shuffle_kernel, "Y"),
            (phase_shuffle_backward_kernel, "GRAD"),
        )
        for dtype, channels in (("fp16", 256), ("fp16", 512), ("fp32", 256))
    ]
