"""Backward of group normalisation in Triton, channels_last in and out (formula: `reference.py`).

    1  sums        PART [B, tiles, ROWS, C]      sums over a tile of pixels of dz, dz xhat; for dbias also xhat, dh
    2  group sums  SUMS [B, 2, C]                the first two over all pixels of an image, in a fixed order
                   GROUP [B, 2, G]               <w dz> and <w dz xhat>
                   EACH [B, C]                   sum of dx over an image's pixels, from the sums alone
    3  parameters  dw, db, dbias [C]             sums over the images, in a fixed order
    4  gradient    dx = rstd (w dz - <w dz> - xhat <w dz xhat>) + dh

h and dy are read twice, dx is written once; xhat, z and dz are computed again from h and the statistics.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.group_norm_silu.tiles import (
    combine_settings,
    grid_of,
    parameter_settings,
    settings_of,
)
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
def group_sums_kernel(
    PART, W, STATS, SUMS, GROUP, EACH,
    tiles, C, members, area, values,
    HAS_BIAS: tl.constexpr,
    STEPS: tl.constexpr, TILES: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """One program: one group of one image. area: pixels; values: pixels x members."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    member = tl.arange(0, MEMBERS)
    channel = group * members + member
    rows: tl.constexpr = 4 if HAS_BIAS else 2
    dz = tl.zeros((TILES, MEMBERS), tl.float32)
    scaled = tl.zeros((TILES, MEMBERS), tl.float32)
    xhat = tl.zeros((TILES, MEMBERS), tl.float32)
    dh = tl.zeros((TILES, MEMBERS), tl.float32)
    for step in range(STEPS):
        tile = step * TILES + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (member < members)[None, :]
        part = ((image * tiles + tile) * rows * C)[:, None] + channel[None, :]
        dz += tl.load(PART + part, mask=inside, other=0.0)
        scaled += tl.load(PART + part + C, mask=inside, other=0.0)
        if HAS_BIAS:
            xhat += tl.load(PART + part + 2 * C, mask=inside, other=0.0)
            dh += tl.load(PART + part + 3 * C, mask=inside, other=0.0)
    known = member < members
    w = tl.load(W + channel, mask=known, other=0.0).to(tl.float32)
    sum_dz, sum_scaled = tl.sum(dz, 0), tl.sum(scaled, 0)
    tl.store(SUMS + image * 2 * C + channel, sum_dz, mask=known)
    tl.store(SUMS + (image * 2 + 1) * C + channel, sum_scaled, mask=known)
    first, second = tl.sum(w * sum_dz) / values, tl.sum(w * sum_scaled) / values
    groups = tl.num_programs(0)
    tl.store(GROUP + image * 2 * groups + group, first)
    tl.store(GROUP + (image * 2 + 1) * groups + group, second)
    if HAS_BIAS:
        rstd = tl.load(STATS + (image * 3 + 2) * groups + group)
        inner = w * sum_dz - area * first - second * tl.sum(xhat, 0)
        each = rstd * inner + tl.sum(dh, 0)
        tl.store(EACH + image * C + channel, each.to(EACH.dtype.element_ty), mask=known)


@triton.jit
def parameters_kernel(
    SUMS, EACH, DW, DB, DBIAS,
    batch, C,
    HAS_BIAS: tl.constexpr,
    STEPS: tl.constexpr, IMAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: CHANNELS channels of the sums over all images, IMAGES at a time."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    dw = tl.zeros((IMAGES, CHANNELS), tl.float32)
    db = tl.zeros((IMAGES, CHANNELS), tl.float32)
    dbias = tl.zeros((IMAGES, CHANNELS), tl.float32)
    for step in range(STEPS):
        image = step * IMAGES + tl.arange(0, IMAGES)
        inside = (image < batch)[:, None] & (channel < C)[None, :]
        offset = image[:, None] * C + channel[None, :]
        db += tl.load(SUMS + 2 * offset - channel[None, :], mask=inside, other=0.0)
        dw += tl.load(SUMS + 2 * offset - channel[None, :] + C, mask=inside, other=0.0)
        if HAS_BIAS:
            dbias += tl.load(EACH + offset, mask=inside, other=0.0)
    inside = channel < C
    tl.store(DW + channel, tl.sum(dw, 0).to(DW.dtype.element_ty), mask=inside)
    tl.store(DB + channel, tl.sum(db, 0).to(DB.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        tl.store(DBIAS + channel, tl.sum(dbias, 0).to(DBIAS.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(
    DY, DH, H, W, B, STATS, GROUP, DX,
    pixels, width, C, members,
    SILU: tl.constexpr, HAS_DH: tl.constexpr, SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS vectors of CHANNELS channels of one image's dx; zero where no pixel of h reads one."""
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
    target = ((image * vectors + vector) * C)[:, None] + channel[None, :]
    written = (vector < vectors)[:, None] & (channel < C)[None, :]
    tl.store(DX + target, dx.to(DX.dtype.element_ty), mask=written)


class _Read(NamedTuple):
    """What the backward reads, in the order of the kernels' arguments."""

    dy: Tensor
    dh: Tensor
    h: Tensor
    w: Tensor
    b: Tensor
    statistics: Tensor


def group_norm_silu_backward(
    grad: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    w: Tensor,
    b: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    silu: bool,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.group_norm_silu_backward`; four launches."""
    dy, h = (t.contiguous(memory_format=torch.channels_last) for t in (grad, h))
    # An unused pointer still has to be one.
    dh = dy if grad_h is None else grad_h.contiguous(memory_format=torch.channels_last)
    read = _Read(dy, dh, h, w.contiguous(), b.contiguous(), statistics)
    flags = {"SILU": silu, "HAS_DH": grad_h is not None}
    part = _sums(read, flags, bias)
    group, sums, each = _group_sums(part, read, bias)
    dx = _gradient(read, group, flags, shuffled)
    return dx, *_parameters(sums, each, read, bias)


def _sums(read: _Read, flags: dict[str, bool], bias: Tensor | None) -> Tensor:
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


def _group_sums(
    part: Tensor, read: _Read, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(group sums, channel sums, sums of dx); the last are dbias itself where bias is [B, C]."""
    batch, tiles, _, channels = part.shape
    groups = read.statistics.shape[2]
    members, pixels = channels // groups, read.h.shape[2] * read.h.shape[3]
    group, sums = part.new_empty((batch, 2, groups)), part.new_empty((batch, 2, channels))
    each = None
    if bias is not None:
        dtype = bias.dtype if bias.ndim == 2 else torch.float32
        each = part.new_empty((batch, channels), dtype=dtype)
    settings, steps = combine_settings(tiles, members, read.h)
    written = (sums, group, sums if each is None else each)
    numbers = (tiles, channels, members, float(pixels), float(pixels * members))
    given = (part, read.w, read.statistics, *written, *numbers)
    flags = {"HAS_BIAS": each is not None, "STEPS": steps}
    launch(group_sums_kernel, (groups, batch), *given, settings=settings, **flags)
    return group, sums, each


def _parameters(
    sums: Tensor, each: Tensor | None, read: _Read, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dw, db, dbias)."""
    batch, _, channels = sums.shape
    dw, db = read.w.new_empty(channels), read.b.new_empty(channels)
    summed = bias is not None and bias.ndim == 1
    dbias = read.h.new_empty(0) if each is None else each
    if summed:
        dbias = bias.new_empty(channels)
    settings, steps = parameter_settings(batch, channels, read.h)
    grid = (triton.cdiv(channels, settings.blocks["CHANNELS"]),)
    given = (sums, sums if each is None else each, dw, db, dbias if summed else db)
    flags = {"HAS_BIAS": summed, "STEPS": steps}
    launch(parameters_kernel, grid, *given, batch, channels, settings=settings, **flags)
    return dw, db, dbias


def _gradient(read: _Read, group: Tensor, flags: dict[str, bool], shuffled: bool) -> Tensor:
    h = read.h
    batch, channels, height, width = h.shape
    shape = (batch, channels, height, width)
    if shuffled:
        shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
    dx = torch.empty(shape, dtype=h.dtype, device=h.device, memory_format=torch.channels_last)
    vectors = shape[1] // channels * shape[2] * shape[3]
    settings = settings_of("gradient", channels, vectors, h)
    grid = grid_of(settings, vectors, channels, batch)
    sizes = (height * width, width, channels, channels // read.statistics.shape[2])
    meta = {**flags, "SHUFFLED": shuffled}
    launch(gradient_kernel, grid, *read, group, dx, *sizes, settings=settings, **meta)
    return dx
