"""Parts of the forward kernels: what is added, statistics of blocks, groups and parts, and how they are applied."""

import triton
import triton.language as tl

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
    X, RESIDUAL, bias, SKIP, H, image, pixel, channel, known, pixels, width, C, own,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    SHUFFLED: tl.constexpr,
):  # fmt: skip
    """h [PIXELS, CHANNELS] in float32, 0 outside; written where it is not x. own: channels of x; the skip's follow."""
    place = image * pixels + pixel
    inside = (pixel < pixels)[:, None] & known[None, :]
    offset = (place * C)[:, None] + channel[None, :]
    of_x, source = inside, offset
    if HAS_SKIP:
        of_x = inside & (channel < own)[None, :]
        source = (place * own)[:, None] + channel[None, :]
    if SHUFFLED:
        vectors = 4 * (pixels // width // 2 + 1) * (width // 2 + 1)
        source = ((image * vectors + gather_index(pixel, width)) * own)[:, None] + channel[None, :]
    value = tl.load(X + source, mask=of_x, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(RESIDUAL + source, mask=of_x, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value = tl.where(of_x, value + bias[None, :], 0.0)
    if HAS_SKIP:
        of_skip = inside & (channel >= own)[None, :]
        other = (place * (C - own))[:, None] + (channel - own)[None, :]
        skipped = tl.load(SKIP + other, mask=of_skip, other=0.0).to(tl.float32)
        value = tl.where(of_skip, skipped, value)
    if HAS_RESIDUAL or HAS_BIAS or HAS_SKIP or SHUFFLED:
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
def measured(
    X, RESIDUAL, BIAS, SKIP, H, image, first, steps, channel, known,
    pixels, width, C, own, bias_step,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    SHUFFLED: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """(count, mean, rest, squares) by channel of `steps` blocks of h from pixel `first` on, and the last block.

    Chan's update, block by block.
    """
    bias = known.to(tl.float32)  # any, where it is not added
    if HAS_BIAS:
        given = BIAS + image * bias_step + channel
        bias = tl.load(given, mask=known & (channel < own), other=0.0).to(tl.float32)
    count = 0.0
    mean, rest, squares = tl.zeros_like(bias), tl.zeros_like(bias), tl.zeros_like(bias)
    value = tl.zeros((PIXELS, channel.shape[0]), tl.float32)
    for step in range(steps):
        start = first + step * PIXELS
        value = _added(
            X, RESIDUAL, bias, SKIP, H, image, start + tl.arange(0, PIXELS), channel, known,
            pixels, width, C, own, HAS_RESIDUAL, HAS_BIAS, HAS_SKIP, SHUFFLED,
        )  # fmt: skip
        fresh, middle, left, apart = _of_block(value, start, pixels)
        mean = tl.where(count > 0, mean, middle)
        further = middle - mean + left - rest
        share = fresh / (count + fresh)
        squares += apart + further * further * (count * share)
        count += fresh
        left = rest + further * share
        better = mean + left
        rest = left - (better - mean)
        mean = better
    return count, mean, rest, squares, value


@triton.jit
def of_groups(
    count, mean, rest, squares, known,
    MEMBERS: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The same of the groups."""
    belongs = _belongs(known, MEMBERS, GROUPS, CHANNELS)
    count = tl.where(belongs, count, 0.0)
    return _together(count, mean[None, :], rest[None, :], squares[None, :])


@triton.jit
def of_parts(
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
def scales(
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
def reciprocal(total, squares, eps):
    """1 / sqrt(variance + eps)."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.maximum(squares / total, 0.0) + eps))


@triton.jit
def channels_of(tile, C, CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr):
    """The tile's channels, and which of them there are."""
    lane = tl.arange(0, CHANNELS)
    channel = tile * (PACK * MEMBERS) + lane
    return channel, (lane < PACK * MEMBERS) & (channel < C)


@triton.jit
def groups_of(tile, C, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr):
    """The tile's groups, and which of them there are."""
    group = tile * PACK + tl.arange(0, GROUPS)
    return group, (tl.arange(0, GROUPS) < PACK) & (group < C // MEMBERS)


@triton.jit
def write_statistics(at, mean, rest, rstd, groups, kept):
    """For the backward."""
    tl.store(at, mean, mask=kept)
    tl.store(at + groups, rest, mask=kept)
    tl.store(at + 2 * groups, rstd, mask=kept)


@triton.jit
def write_output(at, z, inside, SILU: tl.constexpr):
    """y, from what goes into the activation."""
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(at, z.to(at.dtype.element_ty), mask=inside)
