"""BoostHub attention in Triton (formula: `reference.py`), both streams in one launch.

q, q_hub      [B, L, H, D]     any strides with contiguous D
k, v          [B, S, H, D]     likewise
k_hub, v_hub  [B, S_hub, H, D]
out           [B, L, 2, H, D]  written once; for a backward also hub [B, L, H, D] and lse [B, 2, H, L]

Scores stay in registers, in units of log 2, because the hardware has exp2. The backward recomputes them from lse,
first by tiles of queries (dq, delta), then by tiles of keys (dk, dv); both work on g and scale what they have summed,
so phi = 0 is nothing special. Lengths and strides are constants of the compiled form: no bounds checks where the
tiles fit, and offsets whose divisibility the compiler knows. A new length compiles anew.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.boosthub_attention.plan import (
    constants_of,
    readable,
    settings_for,
)
from fr_kernels.boosthub_attention.reference import Gradients
from fr_kernels.launch import Specialization, launch

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _program(H):
    """Stream, hub?, batch and head of this program."""
    stream, pair = tl.program_id(1), tl.program_id(2).to(tl.int64)
    return stream, stream == 1, pair // H, pair % H


@triton.jit
def _tile(
    OWN, HUB, STRIDES: tl.constexpr, AT: tl.constexpr, hub, batch, head, rows, WIDTH: tl.constexpr
):
    """Pointers [rows, WIDTH] into this stream's q (AT = 0), k (1) or v (2), and the row stride.

    64-bit, as everything that depends on the batch: stacked projections may pass 2^31 elements.
    """
    start = tl.where(hub, HUB, OWN)
    start += batch * tl.where(hub, STRIDES[AT + 3][0], STRIDES[AT][0])
    start += head * tl.where(hub, STRIDES[AT + 3][2], STRIDES[AT][2])
    stride = tl.where(hub, STRIDES[AT + 3][1], STRIDES[AT][1]).to(tl.int64)
    return start + rows[:, None] * stride + tl.arange(0, WIDTH)[None, :], stride


@triton.jit
def _select(OWN: tl.constexpr, HUB: tl.constexpr, hub):
    """This stream's number: a constant where both are equal."""
    return OWN if OWN == HUB else tl.where(hub, HUB, OWN)


@triton.jit
def _load(tile, rows, limit, FITS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """Zero outside `rows < limit` and D columns. FITS: no row lies outside."""
    mask = (rows < limit)[:, None] & (tl.arange(0, WIDTH) < D)[None, :]
    return tl.load(tile) if FITS and D == WIDTH else tl.load(tile, mask=mask, other=0.0)


@triton.jit
def boosthub_attention_kernel(
    Q, K, V, Q_HUB, K_HUB, V_HUB, PHI, OUT, HUB, LSE, H,
    STRIDES: tl.constexpr, L: tl.constexpr, S: tl.constexpr, S_HUB: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS queries of one stream, batch and head against all their keys."""
    stream, hub, batch, head = _program(H)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns, lane = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    keys = _select(S, S_HUB, hub)
    FIT: tl.constexpr = S % KEYS == 0 and S_HUB % KEYS == 0
    tile, _ = _tile(Q, Q_HUB, STRIDES, 0, hub, batch, head, rows, WIDTH)
    q = _load(tile, rows, L, L % ROWS == 0, D, WIDTH)
    k_tile, k_stride = _tile(K, K_HUB, STRIDES, 1, hub, batch, head, columns, WIDTH)
    v_tile, v_stride = _tile(V, V_HUB, STRIDES, 2, hub, batch, head, columns, WIDTH)
    scale = LOG2_E * D**-0.5
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for at in range(0, keys, KEYS):
        k = _load(k_tile, at + columns, keys, FIT, D, WIDTH)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        if not FIT:
            score = tl.where((at + columns < keys)[None, :], score, float("-inf"))
        peak = tl.maximum(top, tl.max(score, 1) * scale)
        p = tl.exp2(score * scale - peak[:, None])
        fade = tl.exp2(top - peak)
        total = total * fade + tl.sum(p, 1)
        v = _load(v_tile, at + columns, keys, FIT, D, WIDTH)
        acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        top = peak
        k_tile += KEYS * k_stride
        v_tile += KEYS * v_stride
    acc = acc / total[:, None]
    mask = (rows < L)[:, None] & (lane < D)[None, :]
    at_row = batch * L + rows
    target = ((at_row * 2 + stream) * H + head)[:, None] * D + lane[None, :]
    weighted = acc * tl.where(hub, tl.load(PHI), 1.0)
    tl.store(OUT + target, weighted.to(OUT.dtype.element_ty), mask=mask)
    if KEEP:
        target = (at_row * H + head)[:, None] * D + lane[None, :]
        tl.store(HUB + target, acc.to(HUB.dtype.element_ty), mask=mask & hub)
        line = LSE + ((batch * 2 + stream) * H + head) * L + rows
        tl.store(line, top + tl.log2(total), mask=rows < L)


@triton.jit
def boosthub_attention_dq_kernel(
    GRAD, Q, K, V, Q_HUB, K_HUB, V_HUB, PHI, OUT, HUB, LSE, DELTA, DQ, DQ_HUB, H,
    STRIDES: tl.constexpr, L: tl.constexpr, S: tl.constexpr, S_HUB: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: delta and the gradient to ROWS queries of one stream, batch and head."""
    stream, hub, batch, head = _program(H)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns, lane = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    keys = _select(S, S_HUB, hub)
    FIT: tl.constexpr = S % KEYS == 0 and S_HUB % KEYS == 0
    FIT_ROWS: tl.constexpr = L % ROWS == 0
    # Summed in another order than dp, g . A is off by a rounding that sum_j ds_ij = 0 shows. In float32 it is the
    # largest error of all, so it is taken back: one more product. In 16 bits it drowns in the rounding of ds.
    EXACT: tl.constexpr = Q.dtype.element_ty == tl.float32
    tile, _ = _tile(Q, Q_HUB, STRIDES, 0, hub, batch, head, rows, WIDTH)
    q = _load(tile, rows, L, FIT_ROWS, D, WIDTH)
    at_row = batch * L + rows
    source = ((at_row * 2 + stream) * H + head)[:, None] * D + lane[None, :]
    g = _load(GRAD + source, rows, L, FIT_ROWS, D, WIDTH)
    source = (at_row * tl.where(hub, 1, 2) * H + head)[:, None] * D + lane[None, :]
    o = _load(tl.where(hub, HUB, OUT) + source, rows, L, FIT_ROWS, D, WIDTH)
    delta = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    line = ((batch * 2 + stream) * H + head) * L + rows
    lse = tl.load(LSE + line, mask=rows < L, other=0.0)
    k_tile, k_stride = _tile(K, K_HUB, STRIDES, 1, hub, batch, head, columns, WIDTH)
    v_tile, v_stride = _tile(V, V_HUB, STRIDES, 2, hub, batch, head, columns, WIDTH)
    scale = LOG2_E * D**-0.5
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    mean = tl.zeros((ROWS, WIDTH), tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    for at in range(0, keys, KEYS):
        k = _load(k_tile, at + columns, keys, FIT, D, WIDTH)
        v = _load(v_tile, at + columns, keys, FIT, D, WIDTH)
        score = tl.dot(q, tl.trans(k), input_precision="ieee")
        if not FIT:
            # A key of zeros may still get an infinite p.
            score = tl.where((at + columns < keys)[None, :], score, float("-inf"))
        p = tl.exp2(score * scale - lse[:, None])
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision="ieee")
        if EXACT:
            rest += tl.sum(ds, 1)
            mean = tl.dot(p.to(k.dtype), k, mean, input_precision="ieee")
        k_tile += KEYS * k_stride
        v_tile += KEYS * v_stride
    if EXACT:
        acc -= rest[:, None] * mean
        delta += rest
    tl.store(DELTA + line, delta, mask=rows < L)
    acc *= tl.where(hub, tl.load(PHI), 1.0) * D**-0.5
    mask = (rows < L)[:, None] & (lane < D)[None, :]
    target = (at_row * H + head)[:, None] * D + lane[None, :]
    tl.store(tl.where(hub, DQ_HUB, DQ) + target, acc.to(DQ.dtype.element_ty), mask=mask)


@triton.jit
def boosthub_attention_dkv_kernel(
    GRAD, Q, K, V, Q_HUB, K_HUB, V_HUB, PHI, LSE, DELTA, DK, DV, DK_HUB, DV_HUB, H,
    STRIDES: tl.constexpr, L: tl.constexpr, S: tl.constexpr, S_HUB: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: the gradients to KEYS keys and values of one stream, batch and head."""
    stream, hub, batch, head = _program(H)
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    rows, lane = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    keys = _select(S, S_HUB, hub)
    # The shorter stream leaves the last programs without keys. A loop of run-time length in place of this return spills
    # 892 bytes in float32. The compiler decides a condition on constants, and only if it stands alone.
    if S != S_HUB:  # noqa: SIM102
        if tl.program_id(0) * KEYS >= keys:
            return
    FIT: tl.constexpr = S % KEYS == 0 and S_HUB % KEYS == 0
    FIT_ROWS: tl.constexpr = L % ROWS == 0
    tile, _ = _tile(K, K_HUB, STRIDES, 1, hub, batch, head, columns, WIDTH)
    k = _load(tile, columns, keys, FIT and S == S_HUB, D, WIDTH)
    tile, _ = _tile(V, V_HUB, STRIDES, 2, hub, batch, head, columns, WIDTH)
    v = _load(tile, columns, keys, FIT and S == S_HUB, D, WIDTH)
    q_tile, q_stride = _tile(Q, Q_HUB, STRIDES, 0, hub, batch, head, rows, WIDTH)
    g_tile = GRAD + ((batch * L + rows) * 2 + stream)[:, None] * H * D + head * D + lane[None, :]
    line = ((batch * 2 + stream) * H + head) * L
    scale = LOG2_E * D**-0.5
    dk = tl.zeros((KEYS, WIDTH), tl.float32)
    dv = tl.zeros((KEYS, WIDTH), tl.float32)
    # In float32 the product has the forward's order of operands, so that it repeats the forward's scores: p must be 1
    # where the softmax was. In 16 bits p is rounded anyway, and transposed it stays in registers between products.
    EXACT: tl.constexpr = Q.dtype.element_ty == tl.float32
    for at in range(0, L, ROWS):
        inside = at + rows < L
        q = _load(q_tile, at + rows, L, FIT_ROWS, D, WIDTH)
        g = _load(g_tile, at + rows, L, FIT_ROWS, D, WIDTH)
        lse = tl.load(LSE + line + at + rows, mask=inside, other=0.0)
        delta = tl.load(DELTA + line + at + rows, mask=inside, other=0.0)
        if EXACT:
            score = tl.trans(tl.dot(q, tl.trans(k), input_precision="ieee"))
        else:
            score = tl.dot(k, tl.trans(q), input_precision="ieee")
        p = tl.exp2(score * scale - lse[None, :])
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(g), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
        q_tile += ROWS * q_stride
        g_tile += ROWS * 2 * H * D
    weight = tl.where(hub, tl.load(PHI), 1.0)
    target = ((batch * keys + columns) * H + head)[:, None] * D + lane[None, :]
    mask = (columns < keys)[:, None] & (lane < D)[None, :]
    dk = dk * (weight * D**-0.5)
    tl.store(tl.where(hub, DK_HUB, DK) + target, dk.to(DK.dtype.element_ty), mask=mask)
    tl.store(tl.where(hub, DV_HUB, DV) + target, (dv * weight).to(DV.dtype.element_ty), mask=mask)


def boosthub_attention(
    q: Tensor, k: Tensor, v: Tensor, q_hub: Tensor, k_hub: Tensor, v_hub: Tensor, phi: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `reference.boosthub_attention`; one launch. Without `keep` the last two are empty."""
    tensors = readable(q, k, v, q_hub, k_hub, v_hub)
    batch, rows, heads, width = q.shape
    out = q.new_empty((batch, rows, 2, heads, width))
    hub = q.new_empty((batch, rows, heads, width) if keep else 0)
    lse = q.new_empty((batch, 2, heads, rows) if keep else 0, dtype=torch.float32)
    settings = settings_for("forward", q)
    grid = (triton.cdiv(rows, settings.blocks["ROWS"]), 2, batch * heads)
    launch(
        boosthub_attention_kernel, grid, *tensors, phi, out, hub, lse, heads,
        settings=settings, **constants_of(tensors), KEEP=keep,
    )  # fmt: skip
    return out, hub, lse


def boosthub_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, q_hub: Tensor, k_hub: Tensor, v_hub: Tensor,
    phi: Tensor, out: Tensor, hub: Tensor, lse: Tensor,
) -> Gradients:  # fmt: skip
    """See `reference.boosthub_attention_backward`; two launches and torch's sum."""
    tensors = readable(q, k, v, q_hub, k_hub, v_hub)
    dq, dk, dv, dq_hub, dk_hub, dv_hub = (t.new_empty(t.shape) for t in tensors)
    grad, delta = grad.contiguous(), torch.empty_like(lse)
    constants, heads = constants_of(tensors), q.shape[2]
    settings = settings_for("dq", q)
    grid = (triton.cdiv(q.shape[1], settings.blocks["ROWS"]), 2, q.shape[0] * heads)
    launch(
        boosthub_attention_dq_kernel, grid, grad, *tensors, phi, out, hub, lse, delta, dq, dq_hub,
        heads, settings=settings, **constants,
    )  # fmt: skip
    settings = settings_for("dkv", q)
    longest = max(k.shape[1], k_hub.shape[1])
    grid = (triton.cdiv(longest, settings.blocks["KEYS"]), 2, q.shape[0] * heads)
    launch(
        boosthub_attention_dkv_kernel, grid, grad, *tensors, phi, lse, delta, dk, dv, dk_hub, dv_hub,
        heads, settings=settings, **constants,
    )  # fmt: skip
    return dq, dk, dv, dq_hub, dk_hub, dv_hub, delta[:, 1].sum()


KERNELS = {
    "forward": boosthub_attention_kernel,
    "dq": boosthub_attention_dq_kernel,
    "dkv": boosthub_attention_dkv_kernel,
}


def specializations() -> list[Specialization]:
    """See `forms.py`."""
    from fr_kernels.boosthub_attention import forms

    return forms.specializations()
