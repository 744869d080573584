"""HDRFace's feature gate in Triton, backward (formula: `reference.py`).

gate    reads f_sr, f_lr, grad -> x = [a; b; d] [B, N, 3C], the gradient to the token logits [B, N], and sums over
        a tile of tokens [B, T, 4, C]: of the gradient to a_c, of a, of b, of d
hidden  the token MLP between its two layers -> dh [B N, H], sums [T, 2H + 1] for its w2, b1 and b2
norm    the blend, |a - b| and the LayerNorm -> gradients to f_sr, f_lr, sums [T, 2C] for the norm's weight and bias

Between them torch's matrix products: h = x Wt1^T, dx = dh Wt1, dWt1 = dh^T x, and the channel MLP's, of B rows.
x and dx live only inside the backward; nothing of 3C columns is saved for it.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Specialization, launch
from fr_kernels.sdfm_gate.reference import GATE_EPS, GateState, SdfmWeights
from fr_kernels.sdfm_gate.tiles import (
    GATE_BACKWARD,
    HIDDEN_BACKWARD,
    NORM_BACKWARD,
    settings_of,
)
from fr_kernels.sdfm_gate.triton_kernels import row_statistics, specialization


@triton.jit
def gate_backward_kernel(
    SR, LR, GAMMA, BETA, STATS, TOKEN, CHANNEL, GRAD, X, DLOGIT, SUMS, N,
    C: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS tokens of one image, all channels."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    within = channel < C
    gamma = tl.load(GAMMA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    beta = tl.load(BETA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    a_c = tl.load(CHANNEL + image * C + channel, mask=within, other=0.0)[None, :]
    sum_gate = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_a = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_b = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_d = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in range(STEPS):
        row = (tile * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = row < N
        mask = inside[:, None] & within[None, :]
        offset = image * N * C + row[:, None] * C + channel[None, :]
        mean_a, rstd_a, mean_b, rstd_b = row_statistics(STATS + image * 4 * N, row, N)
        a = tl.load(SR + offset, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(LR + offset, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + offset, mask=mask, other=0.0).to(tl.float32)
        a = tl.where(mask, (a - mean_a) * rstd_a * gamma + beta, 0.0)
        b = tl.where(mask, (b - mean_b) * rstd_b * gamma + beta, 0.0)
        d = tl.abs(a - b)
        x = X + image * N * 3 * C + row[:, None] * (3 * C) + channel[None, :]
        tl.store(x, a.to(X.dtype.element_ty), mask=mask)
        tl.store(x + C, b.to(X.dtype.element_ty), mask=mask)
        tl.store(x + 2 * C, d.to(X.dtype.element_ty), mask=mask)
        a_t = tl.load(TOKEN + image * N + row, mask=inside, other=0.0)
        gate = a_t[:, None] * a_c
        dgate = tl.where((gate >= EPS) & (gate <= 1.0 - EPS), grad * (a - b), 0.0)
        dlogit = tl.sum(dgate * a_c, 1) * a_t * (1.0 - a_t)
        tl.store(DLOGIT + image * N + row, dlogit, mask=inside)
        sum_gate += dgate * a_t[:, None]
        sum_a += a
        sum_b += b
        sum_d += d
    sums = SUMS + (image * tl.num_programs(0) + tile) * 4 * C + channel
    tl.store(sums, tl.sum(sum_gate, 0), mask=within)
    tl.store(sums + C, tl.sum(sum_a, 0), mask=within)
    tl.store(sums + 2 * C, tl.sum(sum_b, 0), mask=within)
    tl.store(sums + 3 * C, tl.sum(sum_d, 0), mask=within)


@triton.jit
def hidden_backward_kernel(
    HIDDEN, W2, DLOGIT, DHIDDEN, SUMS, M,
    H: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS of the M = B N tokens, all H hidden units."""
    unit = tl.arange(0, WIDTH)
    within = unit < H
    w2 = tl.load(W2 + unit, mask=within, other=0.0).to(tl.float32)[None, :]
    sum_w2 = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_b1 = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_b2 = tl.zeros((ROWS,), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < M)[:, None] & within[None, :]
        offset = row[:, None] * H + unit[None, :]
        hidden = tl.load(HIDDEN + offset, mask=mask, other=0.0).to(tl.float32)
        dlogit = tl.load(DLOGIT + row, mask=row < M, other=0.0)
        sigmoid = tl.sigmoid(hidden)
        dhidden = dlogit[:, None] * w2 * sigmoid * (1.0 + hidden * (1.0 - sigmoid))
        tl.store(DHIDDEN + offset, dhidden.to(DHIDDEN.dtype.element_ty), mask=mask)
        sum_w2 += dlogit[:, None] * hidden * sigmoid
        sum_b1 += dhidden
        sum_b2 += dlogit
    sums = SUMS + tl.program_id(0) * (2 * H + 1)
    tl.store(sums + unit, tl.sum(sum_b1, 0), mask=within)
    tl.store(sums + H + unit, tl.sum(sum_w2, 0), mask=within)
    tl.store(sums + 2 * H, tl.sum(sum_b2, 0))


@triton.jit
def norm_backward(F, DF, dy, mean, rstd, gamma, mask, offset, C: tl.constexpr):
    """Stores the gradient to one stream's features; returns dy times the features before weight and bias."""
    x = tl.load(F + offset, mask=mask, other=0.0).to(tl.float32)
    x = tl.where(mask, (x - mean) * rstd, 0.0)
    dx = dy * gamma
    along = tl.sum(dx * x, 1)[:, None] / C
    df = rstd * (dx - tl.sum(dx, 1)[:, None] / C - x * along)
    tl.store(DF + offset, df.to(DF.dtype.element_ty), mask=mask)
    return dy * x


@triton.jit
def norm_backward_kernel(
    SR, LR, GAMMA, BETA, STATS, TOKEN, CHANNEL, GRAD, DX, DPOOLED, DSR, DLR, SUMS, N,
    C: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS tokens of one image, all channels. DX [B, N, 3C], DPOOLED [B, 3C]: to [a; b; d]."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    within = channel < C
    gamma = tl.load(GAMMA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    beta = tl.load(BETA + channel, mask=within, other=0.0).to(tl.float32)[None, :]
    a_c = tl.load(CHANNEL + image * C + channel, mask=within, other=0.0)[None, :]
    pooled = DPOOLED + image * 3 * C + channel
    pooled_a = tl.load(pooled, mask=within, other=0.0).to(tl.float32)[None, :] / N
    pooled_b = tl.load(pooled + C, mask=within, other=0.0).to(tl.float32)[None, :] / N
    pooled_d = tl.load(pooled + 2 * C, mask=within, other=0.0).to(tl.float32)[None, :] / N
    sum_weight = tl.zeros((ROWS, WIDTH), tl.float32)
    sum_bias = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in range(STEPS):
        row = (tile * STEPS + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < N)[:, None] & within[None, :]
        offset = image * N * C + row[:, None] * C + channel[None, :]
        mean_a, rstd_a, mean_b, rstd_b = row_statistics(STATS + image * 4 * N, row, N)
        a = tl.load(SR + offset, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(LR + offset, mask=mask, other=0.0).to(tl.float32)
        a = (a - mean_a) * rstd_a * gamma + beta
        b = (b - mean_b) * rstd_b * gamma + beta
        a_t = tl.load(TOKEN + image * N + row, mask=row < N, other=0.0)[:, None]
        gate = tl.minimum(tl.maximum(a_t * a_c, EPS), 1.0 - EPS)
        grad = tl.load(GRAD + offset, mask=mask, other=0.0).to(tl.float32)
        dx = DX + image * N * 3 * C + row[:, None] * (3 * C) + channel[None, :]
        dd = tl.load(dx + 2 * C, mask=mask, other=0.0).to(tl.float32) + pooled_d
        dd = tl.where(a > b, dd, tl.where(a < b, -dd, 0.0))
        da = tl.load(dx, mask=mask, other=0.0).to(tl.float32) + pooled_a + gate * grad + dd
        db = tl.load(dx + C, mask=mask, other=0.0).to(tl.float32) + pooled_b - dd
        da = tl.where(mask, da, 0.0)
        db = tl.where(mask, db + (1.0 - gate) * grad, 0.0)
        sum_weight += norm_backward(SR, DSR, da, mean_a, rstd_a, gamma, mask, offset, C)
        sum_weight += norm_backward(LR, DLR, db, mean_b, rstd_b, gamma, mask, offset, C)
        sum_bias += da + db
    sums = SUMS + (image * tl.num_programs(0) + tile) * 2 * C + channel
    tl.store(sums, tl.sum(sum_weight, 0), mask=within)
    tl.store(sums + C, tl.sum(sum_bias, 0), mask=within)


def sdfm_gate_backward(
    grad: Tensor, f_sr: Tensor, f_lr: Tensor, weights: Sequence[Tensor], state: GateState
) -> list[Tensor]:
    """Gradients to f_sr, f_lr, [norm weight; bias], channel w1, b1, w2, b2, token w1, [token b1; w2; b2]."""
    grad, f_sr, f_lr, *rest = (t.contiguous() for t in (grad, f_sr, f_lr, *weights))
    w = SdfmWeights(*rest)
    inputs = (f_sr, f_lr, w.norm_weight, w.norm_bias, *state[:3], grad)
    x, dlogit, sums = _gate_backward(inputs)
    dpooled, *channel = _channel_backward(sums.sum(1), w, state, f_sr.shape[1])
    dx, *token = _token_backward(f_sr, x, dlogit, w)
    return [*_norm_backward(inputs, dx, dpooled), *channel, *token]


def _gate_backward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """x [B N, 3C], the gradient to the token logits [B, N], tile sums [B, T, 4, C]."""
    f = inputs[0]
    batch, tokens, width = f.shape
    settings = settings_of("gate_backward", GATE_BACKWARD, f)
    tiles = triton.cdiv(tokens, settings.blocks["ROWS"] * settings.blocks["STEPS"])
    x = f.new_empty(batch * tokens, 3 * width)
    dlogit = f.new_empty(batch, tokens, dtype=torch.float32)
    sums = f.new_empty(batch, tiles, 4, width, dtype=torch.float32)
    launch(
        gate_backward_kernel, (tiles, batch), *inputs, x, dlogit, sums, tokens,
        settings=settings, **_row_meta(width),
    )  # fmt: skip
    return x, dlogit, sums


def _token_backward(
    f: Tensor, x: Tensor, dlogit: Tensor, w: SdfmWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, token w1, and [b1; w2; b2] of the token MLP."""
    rows, units = x.shape[0], w.token_b1.shape[0]
    hidden = torch.addmm(w.token_b1, x, w.token_w1.T)
    dhidden = torch.empty_like(hidden)
    settings = settings_of("hidden_backward", HIDDEN_BACKWARD, f)
    tiles = triton.cdiv(rows, settings.blocks["ROWS"] * settings.blocks["STEPS"])
    sums = f.new_empty(tiles, 2 * units + 1, dtype=torch.float32)
    meta = {"H": units, "WIDTH": triton.next_power_of_2(units)}
    launch(
        hidden_backward_kernel, (tiles,), hidden, w.token_w2, dlogit, dhidden, sums, rows,
        settings=settings, **meta,
    )  # fmt: skip
    return dhidden @ w.token_w1, dhidden.T @ x, sums.sum(0).to(f.dtype)


def _norm_backward(
    inputs: tuple[Tensor, ...], dx: Tensor, dpooled: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to f_sr, f_lr and [norm weight; bias]; dx, dpooled: to [a; b; d] and to its mean."""
    f_sr, f_lr = inputs[:2]
    batch, tokens, width = f_sr.shape
    settings = settings_of("norm_backward", NORM_BACKWARD, f_sr)
    tiles = triton.cdiv(tokens, settings.blocks["ROWS"] * settings.blocks["STEPS"])
    dsr, dlr = torch.empty_like(f_sr), torch.empty_like(f_lr)
    sums = f_sr.new_empty(batch * tiles, 2 * width, dtype=torch.float32)
    launch(
        norm_backward_kernel, (tiles, batch), *inputs, dx, dpooled, dsr, dlr, sums, tokens,
        settings=settings, **_row_meta(width),
    )  # fmt: skip
    return dsr, dlr, sums.sum(0).to(f_sr.dtype)


def _channel_backward(
    sums: Tensor, w: SdfmWeights, state: GateState, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to the pooled [a; b; d] and to channel w1, b1, w2, b2.

    Args:
        sums: [B, 4, C], over the tokens: the gradient to a_c, a, b, d.
        w: the weights.
        state: what the forward kept.
        tokens: N.
    """
    dtype = w.channel_w1.dtype
    pooled = (sums[:, 1:].flatten(1) / tokens).to(dtype)
    hidden = state.channel_hidden.to(dtype)
    dlogit = torch.ops.aten.sigmoid_backward(sums[:, 0], state.channel_gate).to(dtype)
    dhidden = torch.ops.aten.silu_backward(dlogit @ w.channel_w2, hidden)
    dw2 = dlogit.T @ torch.nn.functional.silu(hidden)
    return dhidden @ w.channel_w1, dhidden.T @ pooled, dhidden.sum(0), dw2, dlogit.sum(0)


def _row_meta(width: int) -> dict[str, int | float]:
    return {"C": width, "EPS": GATE_EPS, "WIDTH": triton.next_power_of_2(width)}


def specializations() -> list[Specialization]:
    """DINOv3 L's width in half precision, and its smallest in float32."""
    return [form for size in (("fp16", 1024), ("fp32", 384)) for form in _forms(*size)]


def _forms(dtype: str, width: int) -> list[Specialization]:
    name, row, units = f"{dtype} C={width}", _row_meta(width), {"H": 512, "WIDTH": 512}
    gate, norm = "STATS TOKEN CHANNEL SUMS DLOGIT", "STATS TOKEN CHANNEL SUMS"
    forms = (
        (name, gate_backward_kernel, GATE_BACKWARD, gate, row),
        (f"{dtype} H=512", hidden_backward_kernel, HIDDEN_BACKWARD, "DLOGIT SUMS", units),
        (name, norm_backward_kernel, NORM_BACKWARD, norm, row),
    )
    return [specialization(form[0], dtype, *form[1:], dtype == "fp16") for form in forms]
