"""Group normalisation in Triton, channels_last in and out (formula: `reference.py`; backward: `triton_backward.py`).

    1  statistics  h = x + residual + bias, skip    x, residual, skip read once, h written once (not where h is x)
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
from fr_kernels.group_norm_silu.triton_parts import (
    channels_of,
    groups_of,
    measured,
    of_groups,
    of_parts,
    reciprocal,
    scales,
    write_output,
    write_statistics,
)
from fr_kernels.launch import Specialization, launch


@triton.jit
def statistics_kernel(
    X, RESIDUAL, BIAS, SKIP, H, PART,
    pixels, width, C, own, bias_step, steps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    SHUFFLED: tl.constexpr,
    CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """One program: PACK groups of one image, `steps` blocks of PIXELS pixels."""
    image, part = tl.program_id(2).to(tl.int64), tl.program_id(0)
    channel, known = channels_of(tl.program_id(1), C, CHANNELS, MEMBERS, PACK)
    count, mean, rest, squares, _ = measured(
        X, RESIDUAL, BIAS, SKIP, H, image, part * steps * PIXELS, steps, channel, known,
        pixels, width, C, own, bias_step, HAS_RESIDUAL, HAS_BIAS, HAS_SKIP, SHUFFLED, PIXELS,
    )  # fmt: skip
    _, mean, rest, squares = of_groups(count, mean, rest, squares, known, MEMBERS, GROUPS, CHANNELS)
    group, written = groups_of(tl.program_id(1), C, MEMBERS, PACK, GROUPS)
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
    group, kept = groups_of(tl.program_id(1), C, MEMBERS, PACK, GROUPS)
    groups = C // MEMBERS
    total, mean, rest, squares = of_parts(
        PART + (image * 3 * groups + group) * parts, kept, groups * parts, parts,
        pixels, span, MEMBERS, PARTS,
    )  # fmt: skip
    rstd = reciprocal(total, squares, eps)
    if tl.program_id(0) == 0:
        write_statistics(STATS + image * 3 * groups + group, mean, rest, rstd, groups, kept)
    channel, known = channels_of(tl.program_id(1), C, CHANNELS, MEMBERS, PACK)
    mean, factor, added = scales(W, B, mean, rest, rstd, channel, known, MEMBERS, GROUPS, CHANNELS)
    for step in range(steps):
        pixel = (tl.program_id(0) * steps + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & known[None, :]
        offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
        h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
        write_output(Y + offset, (h - mean) * factor + added, inside, SILU)


@triton.jit
def alone_kernel(
    X, RESIDUAL, BIAS, SKIP, W, B, H, STATS, Y,
    pixels, width, C, own, bias_step, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SKIP: tl.constexpr,
    SHUFFLED: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, PACK: tl.constexpr, GROUPS: tl.constexpr,
    STEPS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One program: PACK groups of one image, all its pixels, STEPS blocks of PIXELS. One block stays in registers."""
    image = tl.program_id(1).to(tl.int64)
    channel, known = channels_of(tl.program_id(0), C, CHANNELS, MEMBERS, PACK)
    count, mean, rest, squares, h = measured(
        X, RESIDUAL, BIAS, SKIP, H, image, 0, STEPS, channel, known,
        pixels, width, C, own, bias_step, HAS_RESIDUAL, HAS_BIAS, HAS_SKIP, SHUFFLED, PIXELS,
    )  # fmt: skip
    total, mean, rest, squares = of_groups(
        count, mean, rest, squares, known, MEMBERS, GROUPS, CHANNELS
    )
    rstd = reciprocal(total, squares, eps)
    group, kept = groups_of(tl.program_id(0), C, MEMBERS, PACK, GROUPS)
    groups = C // MEMBERS
    write_statistics(STATS + image * 3 * groups + group, mean, rest, rstd, groups, kept)
    mean, factor, added = scales(W, B, mean, rest, rstd, channel, known, MEMBERS, GROUPS, CHANNELS)
    if STEPS > 1:
        tl.debug_barrier()  # what other threads of this program wrote of h is read below
    for step in range(STEPS):
        pixel = step * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & known[None, :]
        offset = ((image * pixels + pixel) * C)[:, None] + channel[None, :]
        if STEPS > 1:
            h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
        write_output(Y + offset, (h - mean) * factor + added, inside, SILU)


def group_norm_silu(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    bias: Tensor | None,
    skip: Tensor | None,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.group_norm_silu`; one launch or two, as `plan.launches` says."""
    # An unused pointer still has to be one.
    x, residual_, skip_ = (
        (x if t is None else t).contiguous(memory_format=torch.channels_last)
        for t in (x, residual, skip)
    )
    batch, own, height, width = x.shape
    if shuffled:
        own, height, width = own // 4, 2 * (height - 1), 2 * (width - 1)
    shape = (batch, len(w), height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    flags = {
        "HAS_RESIDUAL": residual is not None,
        "HAS_BIAS": bias is not None,
        "HAS_SKIP": skip is not None,
        "SHUFFLED": shuffled,
    }
    h = torch.empty_like(y) if any(flags.values()) else x
    statistics = torch.empty((batch, 3, groups), dtype=torch.float32, device=x.device)
    given = (x, residual_, x if bias is None else bias.contiguous(), skip_)
    bias_step = own if bias is not None and bias.ndim == 2 else 0
    sizes = (height * width, width, len(w), own, bias_step)
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
