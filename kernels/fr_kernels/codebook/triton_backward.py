"""Backward of codebook matching in Triton (formula: `reference.py`).

rows_kernel    a tile of features against all codes: t [N] and the gradient to the features
codes_kernel   a tile of codes against one part of the features: its share of the gradient to the codebook
sum_kernel     adds the shares, in order: no atomics, so two runs are bitwise equal

Distances, weights and pulls are computed again from f, C and stats, and never in memory.
"""

from math import e, log2
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.codebook.triton_tiles import products, row_tile, settings, sizes, squared_norms
from fr_kernels.launch import Settings, Specialization, launch

SUM = Settings({"SIZE": 1024}, num_warps=4, num_stages=1)
PROGRAMS = 128  # of `codes_kernel`: one wave on the larger GPUs; bounds the shares to 8 MiB of 64 x 256 tiles


@triton.jit
def rows_kernel(
    G, F, C, NORMS, INDEX, STATS, T, DF, N, beta, twice,
    K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, INDEXED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One program: ROWS features. `beta` is that of exp2, `twice` is 2 beta; T is written in mode "embed" only."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f = row_tile(F, row, N, 0, D, DIMS, WIDE)
    best = tl.load(STATS + row, mask=row < N, other=0.0)
    total = tl.load(STATS + N + row, mask=row < N, other=1.0)
    if INDEXED:
        index = tl.load(INDEX + row, mask=row < N, other=0)
        mean = tl.load(STATS + 2 * N + row, mask=row < N, other=0.0)
        size = twice / total * tl.load(G + row, mask=row < N, other=0.0)
    else:
        g = row_tile(G, row, N, 0, D, DIMS, WIDE)
        mean = tl.zeros((ROWS,), tl.float32)
        for first in range(0, K, COLS):
            code = first + tl.arange(0, COLS)
            c = row_tile(C, code, K, 0, D, DIMS, WIDE)
            part = weight_parts(
                F, f, row, N, C, c, code, NORMS, best, beta, K, D, DIMS, DEPTH, WIDE
            )
            a = products(G, g, row, N, C, c, code, K, D, DIMS, DEPTH, WIDE)
            mean += tl.sum(part * a, 1)
        mean = mean / total
        size = twice / total
        tl.store(T + row, mean, mask=row < N)
    out = tl.zeros((ROWS, DIMS), tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    for first in range(0, K, COLS):
        code = first + tl.arange(0, COLS)
        c = row_tile(C, code, K, 0, D, DIMS, WIDE)
        part = weight_parts(F, f, row, N, C, c, code, NORMS, best, beta, K, D, DIMS, DEPTH, WIDE)
        if INDEXED:
            a = (code[None, :] - index[:, None]).to(tl.float32)
        else:
            a = products(G, g, row, N, C, c, code, K, D, DIMS, DEPTH, WIDE)
        pull = (part * (a - mean[:, None])).to(c.dtype)
        out = tl.dot(pull, c, out, input_precision="ieee")
        # What rounding leaves of a sum that is zero; taken from f, the error is that of c - f, not of c.
        rest += tl.sum(pull.to(tl.float32), 1)
    out = size[:, None] * (out - rest[:, None] * row_tile(F, row, N, 0, D, DIMS, True))
    dim = tl.arange(0, DIMS)
    inside = (row < N)[:, None] & (dim < D)[None, :]
    tl.store(DF + row.to(tl.int64)[:, None] * D + dim[None, :], out, mask=inside)


@triton.jit
def weight_parts(
    F, f, row, N, C, c, code, NORMS, best, beta,
    K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """exp(beta (best - d)), [len(row), len(code)]; zero beyond the codes."""
    norm = tl.load(NORMS + code, mask=code < K, other=float("inf"))
    d = norm[None, :] - 2.0 * products(F, f, row, N, C, c, code, K, D, DIMS, DEPTH, WIDE)
    # Rounding may put d below `best`; beta may make that an infinite weight.
    return tl.exp2(tl.minimum(beta * (best[:, None] - d), 0.0))


@triton.jit
def codes_kernel(
    G, F, C, NORMS, INDEX, STATS, T, SHARES, N, beta, twice,
    K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, INDEXED: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One program: COLS codes and STEPS tiles of ROWS features; the tiles of weights are [COLS, ROWS]."""
    code = tl.program_id(0) * COLS + tl.arange(0, COLS)
    c = row_tile(C, code, K, 0, D, DIMS, WIDE)
    norm = tl.load(NORMS + code, mask=code < K, other=float("inf"))
    out = tl.zeros((COLS, DIMS), tl.float32)
    rest = tl.zeros((COLS,), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        f = row_tile(F, row, N, 0, D, DIMS, WIDE)
        best = tl.load(STATS + row, mask=row < N, other=0.0)
        total = tl.load(STATS + N + row, mask=row < N, other=1.0)
        d = norm[:, None] - 2.0 * products(C, c, code, K, F, f, row, N, D, DIMS, DEPTH, WIDE)
        # As in `weight_parts`.
        weight = tl.exp2(tl.minimum(beta * (best[None, :] - d), 0.0)) / total[None, :]
        if INDEXED:
            index = tl.load(INDEX + row, mask=row < N, other=0)
            lead = tl.load(STATS + 2 * N + row, mask=row < N, other=0.0)
            ahead = (code[:, None] - index[None, :]).to(tl.float32) - lead[None, :]
            ahead = ahead * tl.load(G + row, mask=row < N, other=0.0)[None, :]
        else:
            g = row_tile(G, row, N, 0, D, DIMS, WIDE)
            a = products(C, c, code, K, G, g, row, N, D, DIMS, DEPTH, WIDE)
            ahead = a - tl.load(T + row, mask=row < N, other=0.0)[None, :]
            out = tl.dot(weight.to(c.dtype), g, out, input_precision="ieee")
        pull = (twice * weight * ahead).to(c.dtype)
        out = tl.dot(pull, f, out, input_precision="ieee")
        # Summed as rounded, so that the error is that of f - c, not of f.
        rest += tl.sum(pull.to(tl.float32), 1)
    c = row_tile(C, code, K, 0, D, DIMS, True)
    store_share(SHARES, code, out - rest[:, None] * c, K, D, DIMS)


@triton.jit
def chosen_kernel(
    G, INDEX, SHARES, N,
    K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """As `codes_kernel`, for a gradient that goes to the chosen code alone: a product with ones and zeros is exact."""
    code = tl.program_id(0) * COLS + tl.arange(0, COLS)
    out = tl.zeros((COLS, DIMS), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(1) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        g = row_tile(G, row, N, 0, D, DIMS, WIDE)
        index = tl.load(INDEX + row, mask=row < N, other=-1)
        mine = (index[None, :] == code[:, None]).to(g.dtype)
        out = tl.dot(mine, g, out, input_precision="ieee")
    store_share(SHARES, code, out, K, D, DIMS)


@triton.jit
def store_share(SHARES, code, share, K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr):
    """Write a program's [len(code), DIMS] to its part of SHARES [parts, K, D]."""
    dim = tl.arange(0, DIMS)
    row = tl.program_id(1).to(tl.int64) * K + code
    inside = (code < K)[:, None] & (dim < D)[None, :]
    tl.store(SHARES + row[:, None] * D + dim[None, :], share, mask=inside)


@triton.jit
def sum_kernel(SHARES, OUT, count, PARTS: tl.constexpr, SIZE: tl.constexpr):
    """One program: SIZE elements of the gradient to the codebook."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    out = tl.zeros((SIZE,), tl.float32)
    for part in range(PARTS):
        start = tl.cast(part, tl.int64) * count
        out += tl.load(SHARES + start + at, mask=at < count, other=0.0)
    tl.store(OUT + at, out, mask=at < count)


def nearest_code_backward(grad: Tensor, index: Tensor, codebook: Tensor) -> Tensor:
    """See `reference.nearest_code_backward`; two launches."""
    meta = sizes(grad.dtype, codebook)
    chosen = settings("chosen", meta["WIDE"], meta["DIMS"], grad.device)
    steps, parts = split(grad.shape[0], meta["K"], chosen)
    grid = (triton.cdiv(meta["K"], chosen.blocks["COLS"]), parts)
    shares = grad.new_empty(parts, *codebook.shape, dtype=torch.float32)
    given = (grad.contiguous(), index, shares, grad.shape[0])
    launch(chosen_kernel, grid, *given, settings=chosen, STEPS=steps, **meta)
    return _sum(shares, codebook)


def soft_lookup_backward(
    grad: Tensor,
    features: Tensor,
    codebook: Tensor,
    index: Tensor,
    stats: Tensor,
    beta: float,
    indexed: bool,
) -> tuple[Tensor, Tensor]:
    """See `reference.soft_lookup_backward`; four launches."""
    grad, features, codebook = (t.contiguous() for t in (grad, features, codebook))
    n, device = features.shape[0], features.device
    meta = {**sizes(features.dtype, codebook), "INDEXED": indexed}
    t = stats.new_empty(0 if indexed else n)
    out = torch.empty_like(features)
    given = (grad, features, codebook, squared_norms(codebook), index, stats, t)
    scalars = (n, beta * log2(e), 2 * beta)
    chosen = settings("rows", meta["WIDE"], meta["DIMS"], device)
    grid = (triton.cdiv(n, chosen.blocks["ROWS"]),)
    launch(rows_kernel, grid, *given, out, *scalars, settings=chosen, **meta)
    chosen = settings("codes", meta["WIDE"], meta["DIMS"], device)
    steps, parts = split(n, meta["K"], chosen)
    grid = (triton.cdiv(meta["K"], chosen.blocks["COLS"]), parts)
    shares = stats.new_empty(parts, *codebook.shape)
    launch(codes_kernel, grid, *given, shares, *scalars, settings=chosen, STEPS=steps, **meta)
    return out, _sum(shares, codebook)


def split(n: int, k: int, chosen: Settings) -> tuple[int, int]:
    """(tiles of features a program, parts) for about PROGRAMS programs.

    Tiles are a power of two, so that a changing batch compiles few forms; the parts bound what is summed.
    """
    rows = chosen.blocks["ROWS"]
    parts = max(1, PROGRAMS // triton.cdiv(k, chosen.blocks["COLS"]))
    steps = triton.next_power_of_2(max(1, triton.cdiv(n, rows * parts)))
    return steps, max(1, triton.cdiv(n, rows * steps))


def _sum(shares: Tensor, codebook: Tensor) -> Tensor:
    out = codebook.new_empty(codebook.shape)
    grid = (triton.cdiv(out.numel(), SUM.blocks["SIZE"]),)
    launch(sum_kernel, grid, shares, out, out.numel(), settings=SUM, PARTS=shares.shape[0])
    return out


def specializations() -> list[Specialization]:
    """The sizes of `triton_impl.specializations`; 4096 and 65536 features differ in STEPS and PARTS alone."""
    forms: list[Specialization] = []
    for dtype in ("fp16", "fp32"):
        for d in (256, 64):
            meta = {"K": 1024, "D": d, "DIMS": d, "WIDE": dtype == "fp32"}
            for indexed in (False, True):
                forms.append(_soft_form("rows", rows_kernel, dtype, meta, indexed))
                forms.append(_soft_form("codes", codes_kernel, dtype, meta, indexed))
            forms.append(_chosen_form(dtype, meta))
        forms.append(
            Specialization(
                f"sum {dtype} parts=8",
                sum_kernel,
                {"SHARES": "*fp32", "OUT": f"*{dtype}", "count": "i32"},
                {"PARTS": 8, **SUM.blocks},
                SUM,
                divisible=("count",),
                principal=dtype == "fp16",
            )
        )
    return forms


def _soft_form(
    name: str, kernel: Any, dtype: str, meta: dict[str, Any], indexed: bool
) -> Specialization:
    chosen = settings(name, meta["WIDE"], meta["DIMS"], torch.device("cpu"))
    out = "DF" if kernel is rows_kernel else "SHARES"
    pointers = {"G": "*fp32" if indexed else f"*{dtype}", "F": f"*{dtype}", "C": f"*{dtype}"}
    pointers |= {"NORMS": "*fp32", "INDEX": "*i32", "STATS": "*fp32", "T": "*fp32"}
    pointers[out] = f"*{dtype}" if kernel is rows_kernel else "*fp32"
    steps = {} if kernel is rows_kernel else {"STEPS": split(65536, meta["K"], chosen)[0]}
    return Specialization(
        f"{name} {'index' if indexed else 'embed'} {dtype} D={meta['D']}",
        kernel,
        {**pointers, "N": "i32", "beta": "fp32", "twice": "fp32"},
        {**meta, "INDEXED": indexed, **steps, **chosen.blocks},
        chosen,
        divisible=("N",),
        matrix=not meta["WIDE"],
        principal=(dtype, meta["D"]) == ("fp16", 256),
    )


def _chosen_form(dtype: str, meta: dict[str, Any]) -> Specialization:
    chosen = settings("chosen", meta["WIDE"], meta["DIMS"], torch.device("cpu"))
    return Specialization(
        f"chosen {dtype} D={meta['D']}",
        chosen_kernel,
        {"G": f"*{dtype}", "INDEX": "*i32", "SHARES": "*fp32", "N": "i32"},
        {**meta, "STEPS": split(65536, meta["K"], chosen)[0], **chosen.blocks},
        chosen,
        divisible=("N",),
        matrix=not meta["WIDE"],
        principal=(dtype, meta["D"]) == ("fp16", 256),
    )
