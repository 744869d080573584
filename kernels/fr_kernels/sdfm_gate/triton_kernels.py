"""Forward kernels of HDRFace's feature gate (formula: `reference.py`; launched by `triton_impl.py`)."""

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from fr_kernels.launch import Settings, Specialization


@triton.jit
def normalised_rows(F, mask, offset, gamma, beta, C: tl.constexpr, EPS: tl.constexpr):
    """Whole rows [ROWS, WIDTH], zero outside the mask, with their mean and 1 / deviation."""
    x = tl.load(F + offset, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / C + EPS)
    x = tl.where(mask, x * rstd[:, None] * gamma[None, :] + beta[None, :], 0.0)
    return x, mean, rstd


@triton.jit
def statistics_kernel(
    SR, LR, GAMMA, BETA, STATS, SUMS, N,
    C: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS tokens of one image, all channels."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    gamma = tl.load(GAMMA + channel, mask=channel < C, other=0.0).to(tl.float32)
    beta = tl.load(BETA + channel, mask=channel < C, other=0.0).to(tl.float32)
    sum_a = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_b = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_d = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in range(STEPS):
        row = (tile * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < N)[:, None] & (channel < C)[None, :]
        offset = row[:, None] * C + channel[None, :]
        a, mean_a, rstd_a = normalised_rows(SR + image * N * C, mask, offset, gamma, beta, C, EPS)
        b, mean_b, rstd_b = normalised_rows(LR + image * N * C, mask, offset, gamma, beta, C, EPS)
        stats = STATS + image * 4 * N + row
        tl.store(stats, mean_a, mask=row < N)
        tl.store(stats + N, rstd_a, mask=row < N)
        tl.store(stats + 2 * N, mean_b, mask=row < N)
        tl.store(stats + 3 * N, rstd_b, mask=row < N)
        sum_a += a
        sum_b += b
        sum_d += tl.abs(a - b)
    sums = SUMS + (image * tl.num_programs(0) + tile) * 3 * C + channel
    tl.store(sums, tl.sum(sum_a, 0), mask=channel < C)
    tl.store(sums + C, tl.sum(sum_b, 0), mask=channel < C)
    tl.store(sums + 2 * C, tl.sum(sum_d, 0), mask=channel < C)


@triton.jit
def row_statistics(STATS, row, N):
    """Mean and 1 / deviation [ROWS, 1] of f_sr, then of f_lr; STATS is one image's."""
    inside = row < N
    mean_a = tl.load(STATS + row, mask=inside, other=0.0)
    rstd_a = tl.load(STATS + N + row, mask=inside, other=0.0)
    mean_b = tl.load(STATS + 2 * N + row, mask=inside, other=0.0)
    rstd_b = tl.load(STATS + 3 * N + row, mask=inside, other=0.0)
    return mean_a[:, None], rstd_a[:, None], mean_b[:, None], rstd_b[:, None]


@triton.jit
def times_weights(a, b, d, W, unit, channel, acc, C: tl.constexpr, H: tl.constexpr):
    """acc + [a; b; d] W^T for one block of channels: a, b, d [ROWS, CHANNELS], acc [ROWS, UNITS]."""
    w = W + unit[None, :] * (3 * C) + channel[:, None]
    mask = (unit < H)[None, :] & (channel < C)[:, None]
    w_a = tl.load(w, mask=mask, other=0.0)
    w_b = tl.load(w + C, mask=mask, other=0.0)
    w_d = tl.load(w + 2 * C, mask=mask, other=0.0)
    acc = tl.dot(a.to(w_a.dtype), w_a, acc, input_precision="ieee")
    acc = tl.dot(b.to(w_a.dtype), w_b, acc, input_precision="ieee")
    return tl.dot(d.to(w_a.dtype), w_d, acc, input_precision="ieee")


@triton.jit
def token_hidden(
    SR, LR, GAMMA, BETA, STATS, W, row, unit, N,
    C: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """[ROWS, UNITS]: the token MLP's first layer without its bias; the pointers are one image's."""
    inside = row < N
    mean_a, rstd_a, mean_b, rstd_b = row_statistics(STATS, row, N)
    acc = tl.zeros((ROWS, UNITS), tl.float32)
    for start in range(0, C, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        gamma = tl.load(GAMMA + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
        beta = tl.load(BETA + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
        mask = inside[:, None] & (channel < C)[None, :]
        offset = row[:, None] * C + channel[None, :]
        a = tl.load(SR + offset, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(LR + offset, mask=mask, other=0.0).to(tl.float32)
        a = (a - mean_a) * rstd_a * gamma + beta
        b = (b - mean_b) * rstd_b * gamma + beta
        acc = times_weights(a, b, tl.abs(a - b), W, unit, channel, acc, C, H)
    return acc


@triton.jit
def channel_hidden(
    SUMS, W, unit, N, TILES: tl.constexpr,
    C: tl.constexpr, H: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """[UNITS]: the channel MLP's first layer without its bias; SUMS is one image's."""
    acc = tl.zeros((ROWS, UNITS), tl.float32)
    # A tile's mean has the features' magnitude, so a 16-bit dot neither overflows nor loses it.
    scale = TILES / N
    for start in range(0, C, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        a = tl.zeros((ROWS, CHANNELS), tl.float32)
        b = tl.zeros((ROWS, CHANNELS), tl.float32)
        d = tl.zeros((ROWS, CHANNELS), tl.float32)
        for first in tl.static_range(0, TILES, ROWS):
            tile = first + tl.arange(0, ROWS)
            mask = (tile < TILES)[:, None] & (channel < C)[None, :]
            sums = SUMS + tile[:, None] * (3 * C) + channel[None, :]
            a += tl.load(sums, mask=mask, other=0.0)
            b += tl.load(sums + C, mask=mask, other=0.0)
            d += tl.load(sums + 2 * C, mask=mask, other=0.0)
        acc = times_weights(a * scale, b * scale, d * scale, W, unit, channel, acc, C, H)
    return tl.sum(acc, 0) / TILES


@triton.jit
def hidden_kernel(
    SR, LR, GAMMA, BETA, STATS, SUMS, CW1, CB1, TW1, TB1, TW2, CHIDDEN, LOGITS, N,
    C: tl.constexpr, H: tl.constexpr, TILES: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: UNITS hidden units of one image, of the channel MLP (row tile 0) or of ROWS tokens."""
    chunk, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    unit = chunk * UNITS + tl.arange(0, UNITS)
    if tl.program_id(1) == 0:
        sums = SUMS + image * TILES * 3 * C
        # Sixteen rows are the least that a dot takes.
        pooled = channel_hidden(sums, CW1, unit, N, TILES, C, H, 16, UNITS, CHANNELS)
        pooled += tl.load(CB1 + unit, mask=unit < H, other=0.0).to(tl.float32)
        tl.store(CHIDDEN + image * H + unit, pooled, mask=unit < H)
    else:
        row = (tl.program_id(1) - 1) * ROWS + tl.arange(0, ROWS)
        sr, lr, stats = SR + image * N * C, LR + image * N * C, STATS + image * 4 * N
        hidden = token_hidden(
            sr, lr, GAMMA, BETA, stats, TW1, row, unit, N, C, H, ROWS, UNITS, CHANNELS
        )
        hidden += tl.load(TB1 + unit, mask=unit < H, other=0.0).to(tl.float32)[None, :]
        w2 = tl.load(TW2 + unit, mask=unit < H, other=0.0).to(tl.float32)[None, :]
        share = tl.sum(hidden * tl.sigmoid(hidden) * w2, 1)
        logits = LOGITS + (image * tl.num_programs(0) + chunk) * N
        tl.store(logits + row, share, mask=row < N)


@triton.jit
def blend_kernel(
    SR, LR, GAMMA, BETA, STATS, CHIDDEN, CW2, CB2, LOGITS, TB2, OUT, TOKEN, CHANNEL, N,
    C: tl.constexpr, H: tl.constexpr, CHUNKS: tl.constexpr, EPS: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS tokens of one image, CHANNELS channels."""
    image = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    within = channel < C
    acc = tl.zeros((CHANNELS, UNITS), tl.float32)
    for start in range(0, H, UNITS):
        unit = start + tl.arange(0, UNITS)
        hidden = tl.load(CHIDDEN + image * H + unit, mask=unit < H, other=0.0)
        mask = within[:, None] & (unit < H)[None, :]
        w = tl.load(CW2 + channel[:, None] * H + unit[None, :], mask=mask, other=0.0)
        acc += w.to(tl.float32) * (hidden * tl.sigmoid(hidden))[None, :]
    bias = tl.load(CB2 + channel, mask=within, other=0.0).to(tl.float32)
    a_c = tl.sigmoid(tl.sum(acc, 1) + bias)
    if tl.program_id(1) == 0:
        tl.store(CHANNEL + image * C + channel, a_c, mask=within)
    gamma = tl.load(GAMMA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    beta = tl.load(BETA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    token_bias = tl.load(TB2).to(tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = row < N
        logit = tl.zeros((ROWS,), tl.float32) + token_bias
        for chunk in tl.static_range(CHUNKS):
            logit += tl.load(LOGITS + (image * CHUNKS + chunk) * N + row, mask=inside, other=0.0)
        a_t = tl.sigmoid(logit)
        if tl.program_id(0) == 0:
            tl.store(TOKEN + image * N + row, a_t, mask=inside)
        mask = inside[:, None] & within[None, :]
        offset = image * N * C + row[:, None] * C + channel[None, :]
        a = tl.load(SR + offset, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(LR + offset, mask=mask, other=0.0).to(tl.float32)
        mean_a, rstd_a, mean_b, rstd_b = row_statistics(STATS + image * 4 * N, row, N)
        a = (a - mean_a) * rstd_a * gamma + beta
        b = (b - mean_b) * rstd_b * gamma + beta
        gate = tl.minimum(tl.maximum(a_t[:, None] * a_c[None, :], EPS), 1.0 - EPS)
        out = gate * a + (1.0 - gate) * b
        tl.store(OUT + offset, out.to(OUT.dtype.element_ty), mask=mask)


def specialization(
    name: str, dtype: str, kernel: Any, settings: Settings, wide: str, constants: Mapping[str, Any],
    principal: bool,
) -> Specialization:  # fmt: skip
    """One compiled form: every pointer of `dtype` but those named in `wide`, which are float32."""
    constants = {**constants, **settings.blocks}
    types = {name: "*fp32" if name in wide.split() else f"*{dtype}" for name in kernel.arg_names}
    types.update({"N": "i32", "M": "i32"})
    return Specialization(
        f"{kernel.__name__.removesuffix('_kernel')} {name}",
        kernel,
        {name: types[name] for name in kernel.arg_names if name not in constants},
        constants,
        settings,
        matrix=kernel is hidden_kernel and dtype != "fp32",
        principal=principal,
    )
