"""The differentiable argmin over the last dimension in Triton (formula: `reference.py`).

x      [N, K]   read once forward, twice backward
value  [N]      the index or the soft index; index int32 [N]
dx     [N, K]   written once
"""

from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import tuned


@triton.jit
def x_tile(X, row, first, N, K: tl.constexpr, COLS: tl.constexpr):
    """[len(row), COLS] of X in float32; beyond its ends, and for NaN, infinity: weight zero."""
    at = first + tl.arange(0, COLS)
    mask = (row < N)[:, None] & (at < K)[None, :]
    place = row.to(tl.int64)[:, None] * K + at[None, :]
    x = tl.load(X + place, mask=mask, other=float("inf")).to(tl.float32)
    return tl.where(x == x, x, float("inf"))


@triton.jit
def scan_rows(
    X, row, N, beta, K: tl.constexpr, SOFT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """(best, index, total, lead) of each row, as in the lookup kernel; total and lead only if SOFT."""
    best = tl.full((ROWS,), 3.4e38, tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    lead = tl.zeros((ROWS,), tl.float32)
    for first in range(0, K, COLS):
        x = x_tile(X, row, first, N, K, COLS)
        least, at = tl.min(x, 1, return_indices=True)
        closer = least < best
        nearest = tl.where(closer, first + at, index)
        least = tl.where(closer, least, best)
        if SOFT:
            part = tl.exp2(beta * (least[:, None] - x))
            kept = tl.exp2(beta * (least - best))
            step = (first + tl.arange(0, COLS)[None, :] - nearest[:, None]).to(tl.float32)
            moved = lead + total * (index - nearest).to(tl.float32)
            lead = moved * kept + tl.sum(part * step, 1)
            total = total * kept + tl.sum(part, 1)
        best = least
        index = nearest
    return best, index, total, lead


@triton.jit
def argmin_kernel(
    X, VALUE, INDEX, N, beta,
    K: tl.constexpr, SOFT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows. `beta` is that of exp2."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _, index, total, lead = scan_rows(X, row, N, beta, K, SOFT, ROWS, COLS)
    value = index.to(tl.float32)
    if SOFT:
        value += lead / total
    tl.store(INDEX + row, index, mask=row < N)
    tl.store(VALUE + row, value, mask=row < N)


@triton.jit
def argmin_backward_kernel(
    G, X, DX, N, beta, size,
    K: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows. `beta` is that of exp2, `size` is -beta."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    best, index, total, lead = scan_rows(X, row, N, beta, K, True, ROWS, COLS)
    g = size / total * tl.load(G + row, mask=row < N, other=0.0).to(tl.float32)
    for first in range(0, K, COLS):
        at = first + tl.arange(0, COLS)
        x = x_tile(X, row, first, N, K, COLS)
        ahead = (at[None, :] - index[:, None]).to(tl.float32) - (lead / total)[:, None]
        out = g[:, None] * tl.exp2(beta * (best[:, None] - x)) * ahead
        inside = (row < N)[:, None] & (at < K)[None, :]
        tl.store(DX + row.to(tl.int64)[:, None] * K + at[None, :], out, mask=inside)


def differentiable_argmin(x: Tensor, beta: float, hard: bool) -> tuple[Tensor, Tensor]:
    """See `reference.differentiable_argmin`; one launch."""
    x = x.contiguous()
    shape, (n, k) = x.shape[:-1], (x.shape[:-1].numel(), x.shape[-1])
    value, index = x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)
    chosen = settings("argmin", k, x.device)
    grid = (triton.cdiv(n, chosen.blocks["ROWS"]),)
    given = (x, value, index, n, beta * log2(e))
    launch(argmin_kernel, grid, *given, settings=chosen, K=k, SOFT=not hard)
    return value, index


def differentiable_argmin_backward(grad: Tensor, x: Tensor, beta: float) -> Tensor:
    """See `reference.differentiable_argmin_backward`; one launch."""
    grad, x = grad.contiguous(), x.contiguous()
    n, k = grad.numel(), x.shape[-1]
    out = torch.empty_like(x)
    chosen = settings("argmin_backward", k, x.device)
    grid = (triton.cdiv(n, chosen.blocks["ROWS"]),)
    given = (grad, x, out, n, beta * log2(e), -beta)
    launch(argmin_backward_kernel, grid, *given, settings=chosen, K=k)
    return out


def settings(kernel: str, k: int, device: torch.device) -> Settings:
    """4096 elements a program: rows up to 1024 long are whole, longer ones go tile by tile."""
    columns = min(1024, max(16, triton.next_power_of_2(k)))
    blocks = {"ROWS": 4096 // columns, "COLS": columns}
    space = {"ROWS": (1, 64), "COLS": (64, 4096), "num_warps": (1, 16)}
    return tuned("codebook", f"{kernel} k={columns}", Settings(blocks, 4, 1), space, device)


def specializations() -> list[Specialization]:
    """Distances to 1024 codes."""
    chosen = settings("argmin", 1024, torch.device("cpu"))
    scalars = {"N": "i32", "beta": "fp32"}
    forms: list[Specialization] = []
    for dtype in ("fp16", "fp32"):
        for soft in (False, True):
            forms.append(
                Specialization(
                    f"argmin {'soft' if soft else 'hard'} {dtype} K=1024",
                    argmin_kernel,
                    {"X": f"*{dtype}", "VALUE": f"*{dtype}", "INDEX": "*i32", **scalars},
                    {"K": 1024, "SOFT": soft, **chosen.blocks},
                    chosen,
                    divisible=("N",),
                    principal=soft and dtype == "fp16",
                )
            )
        pointers = dict.fromkeys(("G", "X", "DX"), f"*{dtype}")
        forms.append(
            Specialization(
                f"argmin_backward {dtype} K=1024",
                argmin_backward_kernel,
                {**pointers, **scalars, "size": "fp32"},
                {"K": 1024, **chosen.blocks},
                chosen,
                divisible=("N",),
                principal=dtype == "fp16",
            )
        )
    return forms
