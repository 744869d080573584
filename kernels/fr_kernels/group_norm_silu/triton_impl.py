"""Group normalisation in Triton, channels_last in and out (formula: `reference.py`; backward: `triton_backward.py`).

    1  statistics  h = x + residual + bias          x, residual read once, h written once (not where h is x)
                   PART [B, tiles, 2, C]            mean and squared deviations of each channel in a tile of pixels
    2  combine     STATS [B, 3, G]                  mean, rest, rstd from the parts, in a fixed order (Chan's update)
    3  apply       y = act(xhat w + b)              h read once, y written once

Pixels and channels are tiled apart, and statistics are kept by channel, because a group's channels (4 to 80) are
often no power of two. A mean is corrected by the mean of what it leaves, so that a large one costs no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.group_norm_silu.tiles import combine_settings, grid_of, settings_of
from fr_kernels.launch import Specialization, launch
from fr_kernels.phase_shuffle.triton_impl import gather_index


@triton.jit
def channel_values(W, B, STATS, image, channel, C, members):
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
def statistics_kernel(
    X, RESIDUAL, BIAS, H, PART,
    pixels, width, C, bias_step,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS pixels x CHANNELS channels of one image."""
    image = tl.program_id(2).to(tl.int64)  # 32 x 512 x 512 x 256 elements are 2^31
    first = tl.program_id(0) * PIXELS
    pixel = first + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
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
        bias = tl.load(BIAS + image * bias_step + channel, mask=channel < C, other=0.0)
        value = tl.where(inside, value + bias.to(tl.float32)[None, :], 0.0)
    if HAS_RESIDUAL or HAS_BIAS or SHUFFLED:
        rounded = value.to(H.dtype.element_ty)
        tl.store(H + offset, rounded, mask=inside)
        value = rounded.to(tl.float32)
    count = tl.minimum(pixels - first, PIXELS).to(tl.float32)
    mean = tl.sum(value, 0) / count
    away = tl.where(inside, value - mean[None, :], 0.0)
    left = tl.sum(away, 0) / count
    squares = tl.sum(away * away, 0) - count * left * left
    part = (image * tl.num_programs(0) + tl.program_id(0)) * 2 * C + channel
    tl.store(PART + part, mean + left, mask=channel < C)
    tl.store(PART + part + C, squares, mask=channel < C)


@triton.jit
def combine_kernel(
    PART, STATS,
    pixels, tiles, C, members, values, eps,
    PIXELS: tl.constexpr, STEPS: tl.constexpr, TILES: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """One program: one group of one image. values: pixels x members; PIXELS: of a tile; TILES at a time."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    member = tl.arange(0, MEMBERS)
    channel = group * members + member
    total = tl.zeros((TILES, MEMBERS), tl.float32)
    for step in range(STEPS):
        tile = step * TILES + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (member < members)[None, :]
        count = tl.minimum(pixels - tile * PIXELS, PIXELS).to(tl.float32)[:, None]
        part = ((image * tiles + tile) * 2 * C)[:, None] + channel[None, :]
        total += count * tl.load(PART + part, mask=inside, other=0.0)
    mean = tl.sum(total) / values
    left = tl.zeros((TILES, MEMBERS), tl.float32)
    squares = tl.zeros((TILES, MEMBERS), tl.float32)
    for step in range(STEPS):
        tile = step * TILES + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (member < members)[None, :]
        count = tl.minimum(pixels - tile * PIXELS, PIXELS).to(tl.float32)[:, None]
        part = ((image * tiles + tile) * 2 * C)[:, None] + channel[None, :]
        away = tl.where(inside, tl.load(PART + part, mask=inside, other=0.0) - mean, 0.0)
        left += count * away
        squares += tl.load(PART + part + C, mask=inside, other=0.0) + count * away * away
    rest = tl.sum(left) / values
    variance = tl.maximum(tl.sum(squares) / values - rest * rest, 0.0)
    better = mean + rest
    groups = tl.num_programs(0)
    stats = STATS + image * 3 * groups + group
    tl.store(stats, better)
    tl.store(stats + groups, rest - (better - mean))
    tl.store(stats + 2 * groups, tl.div_rn(1.0, tl.sqrt_rn(variance + eps)))


@triton.jit
def apply_kernel(
    H, W, B, STATS, Y,
    pixels, C, members,
    SILU: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS pixels x CHANNELS channels of one image."""
    image = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < C)[None, :]
    offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
    w, b, mean, rest, rstd = channel_values(W, B, STATS, image, channel, C, members)
    h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
    z = (h - mean) * (rstd * w) + (b - rest * w)
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(Y + offset, z.to(Y.dtype.element_ty), mask=inside)


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
    """See `reference.group_norm_silu`; three launches."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    if shuffled:
        channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
    y = torch.empty(
        (batch, channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    plain = residual is None and bias is None and not shuffled
    h = x if plain else torch.empty_like(y)
    statistics = _statistics(x, h, residual, bias, groups, eps, shuffled)
    pixels, members = height * width, channels // groups
    settings = settings_of("apply", channels, pixels, x)
    grid = grid_of(settings, pixels, channels, batch)
    arguments = (h, w.contiguous(), b.contiguous(), statistics, y, pixels, channels, members)
    launch(apply_kernel, grid, *arguments, settings=settings, SILU=silu)
    return y, h, statistics


def _statistics(
    x: Tensor,
    h: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    shuffled: bool,
) -> Tensor:
    """[B, 3, G]; writes h, where it is not x."""
    batch, channels, height, width = h.shape
    pixels, members = height * width, channels // groups
    settings = settings_of("statistics", channels, pixels, x)
    grid = grid_of(settings, pixels, channels, batch)
    part = torch.empty((batch, grid[0], 2, channels), dtype=torch.float32, device=x.device)
    statistics = part.new_empty((batch, 3, groups))
    given = (
        x,
        x if residual is None else residual.contiguous(memory_format=torch.channels_last),
        x if bias is None else bias.contiguous(),
    )
    bias_step = channels if bias is not None and bias.ndim == 2 else 0
    flags = {
        "HAS_RESIDUAL": residual is not None,
        "HAS_BIAS": bias is not None,
        "SHUFFLED": shuffled,
    }
    sizes = (pixels, width, channels, bias_step)
    launch(statistics_kernel, grid, *given, h, part, *sizes, settings=settings, **flags)
    sizes = (pixels, grid[0], channels, members, float(pixels * members), eps)
    meta = {"PIXELS": settings.blocks["PIXELS"]}
    settings, steps = combine_settings("combine", grid[0], members, x)
    given = (part, statistics, *sizes)
    launch(combine_kernel, (groups, batch), *given, settings=settings, STEPS=steps, **meta)
    return statistics


def specializations() -> list[Specialization]:
    """See `forms.py`."""
    from fr_kernels.group_norm_silu import forms

    return forms.specializations()
