"""Backward of group normalisation in Triton, channels_last in and out (formula: `reference.py`).

    1  sums        PART [B, tiles, ROWS, C]      sums over a tile of pixels of dz, dz xhat; for dbias also xhat, dh
    2  group sums  SUMS [B, 2, C]                the first two over all pixels of an image, in a fixed order
                   GROUP [B, 2, G]               <w dz> and <w dz xhat>
                   EACH [B, C]                   sum of dx over an image's pixels, from the sums alone
    3  parameters  dw, db, dbias [C]             sums over the images, in a fixed order
    4  gradient    dx = rstd (w dz - <w dz> - xhat <w dz xhat>) + dh

h and dy are read twice, dx is written once; xhat, z and dz are computed again from h and the statistics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.group_norm_silu.tiles import grid_of, settings_of
from fr_kernels.group_norm_silu.triton_sums import Read, group_sums, parameters
from fr_kernels.launch import launch
from fr_kernels.phase_shuffle.triton_impl import scatter_index


@triton.jit
def _channel_values(W, B, STATS, image, channel, C, members):
    """(w, b, mean, rest rstd, rstd) of these channels of one image; members: channels a group."""
    inside = channel < C
    groups = C // members
    stats = STATS + image * 3 * groups + channel // members
    w = tl.load(W + channel, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(B + channel, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(stats, mask=inside, other=0.0)
    rstd = tl.load(stats + 2 * groups, mask=inside, other=0.0)
    rest = tl.load(stats + groups, mask=inside, other=0.0) * rstd
    return w[None, :], b[None, :], mean[None, :], rest[None, :], rstd[None, :]


@triton.jit
def _before_act(dy, h, w, b, mean, rest, rstd, SILU: tl.constexpr):
    """(xhat, dz)."""
    xhat = (h - mean) * rstd - rest
    dz = dy
    if SILU:
        z = xhat * w + b
        s = tl.sigmoid(z)
        dz = dy * (s * (1.0 + z * (1.0 - s)))
    return xhat, dz


@triton.jit
def sums_kernel(
    DY, DH, H, W, B, STATS, PART,
    pixels, C, members,
    SILU: tl.constexpr, HAS_DH: tl.constexpr, HAS_BIAS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS pixels x CHANNELS channels of one image."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
    h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(DY + offset, mask=inside, other=0.0).to(tl.float32)
    w, b, mean, rest, rstd = _channel_values(W, B, STATS, image, channel, C, members)
    xhat, dz = _before_act(dy, h, w, b, mean, rest, rstd, SILU)
    rows: tl.constexpr = 4 if HAS_BIAS else 2
    part = (image * tl.num_programs(0) + tl.program_id(0)) * rows * C + channel
    tl.store(PART + part, tl.sum(dz, 0), mask=channel < C)
    tl.store(PART + part + C, tl.sum(dz * xhat, 0), mask=channel < C)
    if HAS_BIAS:
        dh = tl.zeros((PIXELS, CHANNELS), tl.float32)
        if HAS_DH:
            dh = tl.load(DH + offset, mask=inside, other=0.0).to(tl.float32)
        normal = tl.sum(tl.where(inside, xhat, 0.0), 0)
        tl.store(PART + part + 2 * C, normal, mask=channel < C)
        tl.store(PART + part + 3 * C, tl.sum(dh, 0), mask=channel < C)


@triton.jit
def gradient_kernel(
    DY, DH, H, W, B, STATS, GROUP, DX, DSKIP,
    pixels, width, C, own, members,
    SILU: tl.constexpr, HAS_DH: tl.constexpr, HAS_SKIP: tl.constexpr, SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS vectors of CHANNELS channels of one image's dx; zero where no pixel of h reads one.

    own: channels of x; those after them are the skip's.
    """
    image = tl.program_id(2).to(tl.int64)
    vector = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    if SHUFFLED:
        pixel, read = scatter_index(vector, pixels // width, width)
        vectors = 4 * (pixels // width // 2 + 1) * (width // 2 + 1)
    else:
        pixel, read, vectors = vector, vector < pixels, pixels
    inside = read[:, None] & (channel < C)[None, :]
    offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
    h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(DY + offset, mask=inside, other=0.0).to(tl.float32)
    w, b, mean, rest, rstd = _channel_values(W, B, STATS, image, channel, C, members)
    xhat, dz = _before_act(dy, h, w, b, mean, rest, rstd, SILU)
    groups = C // members
    group = GROUP + image * 2 * groups + channel // members
    first = tl.load(group, mask=channel < C, other=0.0)
    second = tl.load(group + groups, mask=channel < C, other=0.0)
    dx = rstd * (w * dz - first[None, :] - xhat * second[None, :])
    if HAS_DH:
        dx += tl.load(DH + offset, mask=inside, other=0.0).to(tl.float32)
    if SHUFFLED:
        dx = tl.where(inside, dx, 0.0)
    target = ((image * vectors + vector) * own)[:, None] + channel[None, :]
    written = (vector < vectors)[:, None] & (channel < own)[None, :]
    tl.store(DX + target, dx.to(DX.dtype.element_ty), mask=written)
    if HAS_SKIP:
        target = ((image * pixels + pixel) * (C - own))[:, None] + (channel - own)[None, :]
        written = inside & (channel >= own)[None, :]
        tl.store(DSKIP + target, dx.to(DSKIP.dtype.element_ty), mask=written)


def group_norm_silu_backward(
    grad: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    w: Tensor,
    b: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    silu: bool,
    skipped: int,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `reference.group_norm_silu_backward`; four launches."""
    dy, h = (t.contiguous(memory_format=torch.channels_last) for t in (grad, h))
    # An unused pointer still has to be one.
    dh = dy if grad_h is None else grad_h.contiguous(memory_format=torch.channels_last)
    read = Read(dy, dh, h, w.contiguous(), b.contiguous(), statistics)
    flags = {"SILU": silu, "HAS_DH": grad_h is not None}
    part = _sums(read, flags, bias)
    group, sums, each = group_sums(part, read, bias)
    dx, dskip = _gradient(read, group, flags, skipped, shuffled)
    return dx, *parameters(sums, each, read, bias), dskip


def _sums(read: Read, flags: dict[str, bool], bias: Tensor | None) -> Tensor:
    batch, channels, height, width = read.h.shape
    pixels = height * width
    settings = settings_of("sums", channels, pixels, read.h)
    grid = grid_of(settings, pixels, channels, batch)
    shape = (batch, grid[0], 2 if bias is None else 4, channels)
    part = torch.empty(shape, dtype=torch.float32, device=read.h.device)
    sizes = (pixels, channels, channels // read.statistics.shape[2])
    flags = {**flags, "HAS_BIAS": bias is not None}
    launch(sums_kernel, grid, *read, part, *sizes, settings=settings, **flags)
    return part


def _gradient(
    read: Read, group: Tensor, flags: dict[str, bool], skipped: int, shuffled: bool
) -> tuple[Tensor, Tensor]:
    """(dx, dskip)."""
    h = read.h
    batch, channels, height, width = h.shape
    own = channels - skipped
    shape = (batch, own, height, width)
    if shuffled:
        shape = (batch, 4 * own, height // 2 + 1, width // 2 + 1)
    dx, dskip = (
        torch.empty(size, dtype=h.dtype, device=h.device, memory_format=torch.channels_last)
        for size in (shape, (batch, skipped, height, width))
    )
    vectors = (4 if shuffled else 1) * shape[2] * shape[3]
    settings = settings_of("gradient", channels, vectors, h)
    grid = grid_of(settings, vectors, channels, batch)
    sizes = (height * width, width, channels, own, channels // read.statistics.shape[2])
    meta = {**flags, "HAS_SKIP": skipped > 0, "SHUFFLED": shuffled}
    written = (dx, dskip if skipped else dx)
    launch(gradient_kernel, grid, *read, group, *written, *sizes, settings=settings, **meta)
    return dx, dskip
