"""Group normalisation in Triton, channels_last in and out (formula: `reference.py`; backward: `triton_backward.py`).

    1  statistics  h = x + residual + bias          x, residual read once, h written once (not where h is x)
                   PART [B, 3, G, parts]            mean, rest, squared deviations of each group in a part of the pixels
    2  apply       mean, rest, rstd                 of the parts, in a fixed order (Chan's update), in every program
                   y = act(xhat w + b)              h read once, y written once; STATS [B, 3, G] by the first programs

A picture that is small enough (`plan.py`) takes one launch: a program has all pixels of its groups. Programs hold
whole groups, often no power of two channels, and sum by channel first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.group_norm_silu import plan
from fr_kernels.group_norm_silu.tiles import ceil_div, power_of_2
from fr_kernels.launch import Specialization, launch
from fr_kernels.phase_shuffle.triton_impl import gather_index


@triton.jit
def _together(count, mean, rest, squares):
    """Of the parts in each row, `count` values with their mean (+ rest) and squared deviations: the same of all.

    A mean is corrected by the mean of what it leaves, so that a large one costs no digits. No part: count is 0.
    """
    total = tl.maximum(tl.sum(count, 1), 1.0)
    middle = tl.sum(count * mean, 1) / total
    away = tl.where(count > 0, mean - middle[:, None] + rest, 0.0)
    left = tl.sum(count * away, 1) / total
    apart = tl.where(count > 0, squares + count * away * away, 0.0)
    better = middle + left
    return total, better, left - (better - middle), tl.sum(apart, 1) - total * left * left


@triton.jit
def _added(
    X, RESIDUAL, bias, H, image, pixel, channel, known, pixels, width, C,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SHUFFLED: tl.constexpr,
):  # fmt: skip
    """h [PIXELS, CHANNELS] in float32, 0 outside; writes it where it is not x."""
    inside = (pixel < pixels)[:, None] & known[None, :]
    offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
    if SHUFFLED:
        vectors = 4 * (pixels // width // 2 + 1) * (width // 2 + 1)
        source = (image * vectors + gather_index(pixel, width)) * C
        value = tl.load(X + source[:, None] + channel[None, :], mask=inside, other=0.0)
    else:
        value = tl.load(X + offset, mask=inside, other=0.0)
    value = value.to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(RESIDUAL + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value = tl.where(inside, value + bias[None, :], 0.0)
    if HAS_RESIDUAL or HAS_BIAS or SHUFFLED:
        rounded = value.to(H.dtype.element_ty)
        tl.store(H + offset, rounded, mask=inside)
        value = rounded.to(tl.float32)
    return value


@triton.jit
def _of_block(value, first, pixels):
    """(count, mean, rest, squares) by channel of a block of h from pixel `first` on; it may have none."""
    there = first + tl.arange(0, value.shape[0]) < pixels
    count = tl.minimum(tl.maximum(pixels - first, 0), value.shape[0]).to(tl.float32)
    filled = tl.maximum(count, 1.0)
    mean = tl.sum(value, 0) / filled
    away = tl.where(there[:, None], value - mean[None, :], 0.0)
    rest = tl.sum(away, 0) / filled
    return count, mean, rest, tl.sum(away * away, 0) - count * rest * rest


@triton.jit
def _measured(
    X, RESIDUAL, BIAS, H, image, first, steps, channel, known, pixels, width, C, bias_step,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """(count, mean, rest, squares) by channel of `steps` blocks of h from pixel `first` on, and the last block.

    Chan's update, block by block.
    """
    bias = known.to(tl.float32)  # any, where it is not added
    if HAS_BIAS:
        bias = tl.load(BIAS + image * bias_step + channel, mask=known, other=0.0).to(tl.float32)
    count = 0.0
    mean, rest, squares = tl.zeros_like(bias), tl.zeros_like(bias), tl.zeros_like(bias)
    value = tl.zeros((PIXELS, channel.shape[0]), tl.float32)
    for step in range(steps):
        start = first + step * PIXELS
        value = _added(
            X, RESIDUAL, bias, H, image, start + tl.arange(0, PIXELS), channel, known, pixels,
            width, C, HAS_RESIDUAL, HAS_BIAS, SHUFFLED,
        )  # fmt: skip
        fresh, middle, left, apart = _of_block(value, start, pixels)
        mean = tl.where(count > 0, mean, middle)
        further = middle - mean + left - rest
        share = fresh / (count + fresh)
        squares += apart + count * share * further * further
        count += fresh
        rest += share * further
        better = mean + rest
        rest -= better - mean
        mean = better
    return count, mean, rest, squares, value


@triton.jit
def _of_groups(
    count, mean, rest, squares, known,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The same of the groups."""
    belongs = _belongs(known, MEMBERS, GROUPS, CHANNELS)
    count = tl.where(belongs, count, 0.0)
    return _together(count, mean[None, :], rest[None, :], squares[None, :])


@triton.jit
def _of_parts(
    at, kept, step, parts, pixels, span, MEMBERS: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """(values, mean, rest, squares) of the groups whose parts begin at these places; step: from mean to rest."""
    part = tl.arange(0, PARTS)
    inside = kept[:, None] & (part < parts)[None, :]
    count = (MEMBERS * tl.minimum(pixels - part * span, span)).to(tl.float32)
    at = at[:, None] + part[None, :]
    return _together(
        tl.where(inside, count[None, :], 0.0),
        tl.load(at, mask=inside, other=0.0),
        tl.load(at + step, mask=inside, other=0.0),
        tl.load(at + 2 * step, mask=inside, other=0.0),
    )


@triton.jit
def _belongs(known, MEMBERS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """[GROUPS, CHANNELS]: which channels of a tile are a group's."""
    group = tl.arange(0, CHANNELS) // MEMBERS
    return (group[None, :] == tl.arange(0, GROUPS)[:, None]) & known[None, :]


@triton.jit
def _scales(
    W, B, mean, rest, rstd, channel, known,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """By channel, mean, factor and what is added: z = (h - mean) factor + added."""
    belongs = _belongs(known, MEMBERS, GROUPS, CHANNELS)
    mean = tl.sum(tl.where(belongs, mean[:, None], 0.0), 0)
    rest = tl.sum(tl.where(belongs, rest[:, None], 0.0), 0)
    factor = tl.sum(tl.where(belongs, rstd[:, None], 0.0), 0)
    factor *= tl.load(W + channel, mask=known, other=0.0).to(tl.float32)
    added = tl.load(B + channel, mask=known, other=0.0).to(tl.float32) - rest * factor
    return mean[None, :], factor[None, :], added[None, :]


@triton.jit
def _rstd(total, squares, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(tl.maximum(squares / total, 0.0) + eps))


@triton.jit
def _channels_of(tile, C, CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr):
    """The tile's channels, and which of them there are."""
    lane = tl.arange(0, CHANNELS)
    channel = tile * (PACK * MEMBERS) + lane
    return channel, (lane < PACK * MEMBERS) & (channel < C)


@triton.jit
def _groups_of(tile, C, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr):
    """The tile's groups, and which of them there are."""
    group = tile * PACK + tl.arange(0, GROUPS)
    return group, (tl.arange(0, GROUPS) < PACK) & (group < C // MEMBERS)


@triton.jit
def statistics_kernel(
    X, RESIDUAL, BIAS, H, PART,
    pixels, width, C, bias_step, steps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SHUFFLED: tl.constexpr,
    CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """One program: PACK groups of one image, `steps` blocks of PIXELS pixels."""
    image, part = tl.program_id(2).to(tl.int64), tl.program_id(0)
    channel, known = _channels_of(tl.program_id(1), C, CHANNELS, MEMBERS, PACK)
    count, mean, rest, squares, _ = _measured(
        X, RESIDUAL, BIAS, H, image, part * steps * PIXELS, steps, channel, known,
        pixels, width, C, bias_step, HAS_RESIDUAL, HAS_BIAS, SHUFFLED, PIXELS,
    )  # fmt: skip
    _, mean, rest, squares = _of_groups(
        count, mean, rest, squares, known, MEMBERS, GROUPS, CHANNELS
    )
    group, written = _groups_of(tl.program_id(1), C, MEMBERS, PACK, GROUPS)
    groups, parts = C // MEMBERS, tl.num_programs(0)
    at = PART + (image * 3 * groups + group) * parts + part
    tl.store(at, mean, mask=written)
    tl.store(at + groups * parts, rest, mask=written)
    tl.store(at + 2 * groups * parts, squares, mask=written)


@triton.jit
def apply_kernel(
    H, W, B, PART, STATS, Y,
    pixels, C, steps, parts, span, eps,
    SILU: tl.constexpr,
    CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr,
    PARTS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One program: PACK groups of one image, `steps` blocks of PIXELS pixels. span: pixels of a part."""
    image = tl.program_id(2).to(tl.int64)
    group, kept = _groups_of(tl.program_id(1), C, MEMBERS, PACK, GROUPS)
    groups = C // MEMBERS
    total, mean, rest, squares = _of_parts(
        PART + (image * 3 * groups + group) * parts, kept, groups * parts, parts,
        pixels, span, MEMBERS, PARTS,
    )  # fmt: skip
    rstd = _rstd(total, squares, eps)
    if tl.program_id(0) == 0:
        _write_statistics(STATS + image * 3 * groups + group, mean, rest, rstd, groups, kept)
    channel, known = _channels_of(tl.program_id(1), C, CHANNELS, MEMBERS, PACK)
    mean, factor, added = _scales(W, B, mean, rest, rstd, channel, known, MEMBERS, GROUPS, CHANNELS)
    for step in range(steps):
        pixel = (tl.program_id(0) * steps + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & known[None, :]
        offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
        h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
        _write_output(Y + offset, (h - mean) * factor + added, inside, SILU)


@triton.jit
def alone_kernel(
    X, RESIDUAL, BIAS, W, B, H, STATS, Y,
    pixels, width, C, bias_step, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SHUFFLED: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr,
    STEPS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One program: PACK groups of one image, all its pixels, STEPS blocks of PIXELS. One block stays in registers."""
    image = tl.program_id(1).to(tl.int64)
    channel, known = _channels_of(tl.program_id(0), C, CHANNELS, MEMBERS, PACK)
    count, mean, rest, squares, h = _measured(
        X, RESIDUAL, BIAS, H, image, 0, STEPS, channel, known,
        pixels, width, C, bias_step, HAS_RESIDUAL, HAS_BIAS, SHUFFLED, PIXELS,
    )  # fmt: skip
    total, mean, rest, squares = _of_groups(
        count, mean, rest, squares, known, MEMBERS, GROUPS, CHANNELS
    )
    rstd = _rstd(total, squares, eps)
    group, kept = _groups_of(tl.program_id(0), C, MEMBERS, PACK, GROUPS)
    groups = C // MEMBERS
    _write_statistics(STATS + image * 3 * groups + group, mean, rest, rstd, groups, kept)
    mean, factor, added = _scales(W, B, mean, rest, rstd, channel, known, MEMBERS, GROUPS, CHANNELS)
    if STEPS > 1:
        tl.debug_barrier()  # what other threads of this program wrote of h is read below
    for step in range(STEPS):
        pixel = step * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & known[None, :]
        offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
        if STEPS > 1:
            h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
        _write_output(Y + offset, (h - mean) * factor + added, inside, SILU)


@triton.jit
def _write_statistics(at, mean, rest, rstd, groups, kept):
    tl.store(at, mean, mask=kept)
    tl.store(at + groups, rest, mask=kept)
    tl.store(at + 2 * groups, rstd, mask=kept)


@triton.jit
def _write_output(at, z, inside, SILU: tl.constexpr):
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(at, z.to(at.dtype.element_ty), mask=inside)


def group_norm_silu(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    bias: Tensor | None,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.group_norm_silu`; one launch or two, as `plan.launches` says."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, _, height, width = x.shape
    if shuffled:
        height, width = 2 * (height - 1), 2 * (width - 1)
    y = torch.empty(
        (batch, len(w), height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    plain = residual is None and bias is None and not shuffled
    h = x if plain else torch.empty_like(y)
    statistics = torch.empty((batch, 3, groups), dtype=torch.float32, device=x.device)
    # An unused pointer still has to be one.
    given = (
        x,
        x if residual is None else residual.contiguous(memory_format=torch.channels_last),
        x if bias is None else bias.contiguous(),
    )
    bias_step = len(w) if bias is not None and bias.ndim == 2 else 0
    flags = {
        "HAS_RESIDUAL": residual is not None,
        "HAS_BIAS": bias is not None,
        "SHUFFLED": shuffled,
    }
    sizes = (height * width, width, len(w), bias_step)
    norm = (w.contiguous(), b.contiguous())
    if plan.launches(x, w, groups, shuffled) == 1:
        _alone(given, norm, h, statistics, y, sizes, eps, {**flags, "SILU": silu})
    else:
        part, span = _statistics(given, h, groups, sizes, flags)
        _apply(h, norm, part, span, statistics, y, eps, silu)
    return y, h, statistics


def _alone(given, norm, h, statistics, y, sizes, eps, flags):
    pixels, channels = h.shape[2] * h.shape[3], h.shape[1]
    groups = statistics.shape[2]
    tile = plan.alone_tile(channels // groups, groups)
    settings = plan.settings_of("alone", tile, pixels, h)
    rows = settings.blocks["PIXELS"]
    meta = {**flags, **tile.constants, "STEPS": ceil_div(pixels, rows)}
    grid = (ceil_div(groups, tile.pack), h.shape[0])
    arguments = (*given, *norm, h, statistics, y, *sizes, eps)
    launch(alone_kernel, grid, *arguments, settings=settings, **meta)


def _statistics(given, h, groups, sizes, flags):
    """(PART, pixels of a part); writes h, where it is not x."""
    batch, channels, pixels = *h.shape[:2], sizes[0]
    tile = plan.pass_tile(channels // groups, groups)
    settings = plan.settings_of("statistics", tile, pixels, h)
    rows = settings.blocks["PIXELS"]
    tiles = ceil_div(groups, tile.pack)
    parts, steps = plan.cut("statistics", pixels, rows, tiles)
    part = torch.empty((batch, 3, groups, parts), dtype=torch.float32, device=h.device)
    grid = (parts, tiles, batch)
    meta = {**flags, **tile.constants}
    launch(statistics_kernel, grid, *given, h, part, *sizes, steps, settings=settings, **meta)
    return part, rows * steps


def _apply(h, norm, part, span, statistics, y, eps, silu):
    batch, channels, pixels = *h.shape[:2], h.shape[2] * h.shape[3]
    groups, parts = part.shape[2:]
    tile = plan.pass_tile(channels // groups, groups)
    settings = plan.settings_of("apply", tile, pixels, h)
    tiles = ceil_div(groups, tile.pack)
    applied, steps = plan.cut("apply", pixels, settings.blocks["PIXELS"], tiles)
    grid = (applied, tiles, batch)
    arguments = (h, *norm, part, statistics, y, pixels, channels, steps, parts, span, eps)
    meta = {"SILU": silu, **tile.constants, "PARTS": power_of_2(parts)}
    launch(apply_kernel, grid, *arguments, settings=settings, **meta)


def specializations() -> list[Specialization]:
    """See `forms.py`."""
    from fr_kernels.group_norm_silu import forms

    return forms.specializations()
