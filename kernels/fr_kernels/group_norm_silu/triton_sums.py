"""Backward of group normalisation, second and third launch: what the tiles of pixels left, by group, channel, image."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.group_norm_silu.tiles import combine_settings, parameter_settings
from fr_kernels.launch import launch


@triton.jit
def group_sums_kernel(
    PART, W, STATS, SUMS, GROUP, EACH,
    tiles, C, own, members, area, values,
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
        written = known & (channel < own)
        tl.store(EACH + image * own + channel, each.to(EACH.dtype.element_ty), mask=written)


@triton.jit
def parameters_kernel(
    SUMS, EACH, DW, DB, DBIAS,
    batch, C, own,
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
            biased = inside & (channel < own)[None, :]
            dbias += tl.load(EACH + image[:, None] * own + channel[None, :], mask=biased, other=0.0)
    inside = channel < C
    tl.store(DW + channel, tl.sum(dw, 0).to(DW.dtype.element_ty), mask=inside)
    tl.store(DB + channel, tl.sum(db, 0).to(DB.dtype.element_ty), mask=inside)
    if HAS_BIAS:
        inside = channel < own
        tl.store(DBIAS + channel, tl.sum(dbias, 0).to(DBIAS.dtype.element_ty), mask=inside)


class Read(NamedTuple):
    """What the backward reads, in the order of the kernels' arguments."""

    dy: Tensor
    dh: Tensor
    h: Tensor
    w: Tensor
    b: Tensor
    statistics: Tensor


def group_sums(
    part: Tensor, read: Read, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(group sums, channel sums, sums of dx); the last are dbias itself where bias is [B, C]."""
    batch, tiles, _, channels = part.shape
    groups = read.statistics.shape[2]
    members, pixels = channels // groups, read.h.shape[2] * read.h.shape[3]
    group, sums = part.new_empty((batch, 2, groups)), part.new_empty((batch, 2, channels))
    each = None
    if bias is not None:
        dtype = bias.dtype if bias.ndim == 2 else torch.float32
        each = part.new_empty((batch, bias.shape[-1]), dtype=dtype)
    settings, steps = combine_settings(tiles, members, read.h)
    written = (sums, group, sums if each is None else each)
    own = channels if bias is None else bias.shape[-1]
    numbers = (tiles, channels, own, members, float(pixels), float(pixels * members))
    given = (part, read.w, read.statistics, *written, *numbers)
    flags = {"HAS_BIAS": each is not None, "STEPS": steps}
    launch(group_sums_kernel, (groups, batch), *given, settings=settings, **flags)
    return group, sums, each


def parameters(
    sums: Tensor, each: Tensor | None, read: Read, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dw, db, dbias)."""
    batch, _, channels = sums.shape
    dw, db = read.w.new_empty(channels), read.b.new_empty(channels)
    summed = bias is not None and bias.ndim == 1
    dbias = read.h.new_empty(0) if each is None else each
    if summed:
        dbias = bias.new_empty(bias.shape)
    settings, steps = parameter_settings(batch, channels, read.h)
    grid = (triton.cdiv(channels, settings.blocks["CHANNELS"]),)
    given = (sums, sums if each is None else each, dw, db, dbias if summed else db)
    flags = {"HAS_BIAS": summed, "STEPS": steps}
    sizes = (batch, channels, channels if bias is None else bias.shape[-1])
    launch(parameters_kernel, grid, *given, *sizes, settings=settings, **flags)
    return dw, db, dbias
