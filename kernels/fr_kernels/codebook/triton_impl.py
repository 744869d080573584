"""Codebook matching in Triton (formula: `reference.py`): forward kernels, launchers, what is compiled ahead of time.

features [N, D]   read once, a tile of rows a program
codebook [K, D]   read once a program, a tile of codes at a time; |c|^2 [K] is computed first
distances         [ROWS, COLS] in registers, never in memory
out               codes [N, D], index int32 [N], and for the backward stats [2 or 3, N]
"""

from math import e, log2

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.codebook import triton_argmin, triton_backward
from fr_kernels.codebook.triton_tiles import (
    norms_form,
    products,
    row_tile,
    settings,
    sizes,
    squared_norms,
)
from fr_kernels.launch import Specialization, launch

LARGE = 16384  # features: 128 programs of 128


@triton.jit
def lookup_kernel(
    F, C, NORMS, CODES, INDEX, VALUE, STATS, N, beta,
    K: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr, WIDE: tl.constexpr, SOFT: tl.constexpr,
    INDEXED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One program: ROWS features against all codes. `beta` is that of exp2."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f = row_tile(F, row, N, 0, D, DIMS, WIDE)
    # Finite, so that no difference of two infinities arises; a distance not below it chooses code 0.
    best = tl.full((ROWS,), 3.4e38, tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS,), tl.float32)
    lead = tl.zeros((ROWS,), tl.float32)
    for first in range(0, K, COLS):
        code = first + tl.arange(0, COLS)
        c = row_tile(C, code, K, 0, D, DIMS, WIDE)
        norm = tl.load(NORMS + code, mask=code < K, other=float("inf"))
        d = norm[None, :] - 2.0 * products(F, f, row, N, C, c, code, K, D, DIMS, DEPTH, WIDE)
        d = tl.where(d == d, d, float("inf"))
        least, at = tl.min(d, 1, return_indices=True)
        # Tiles come in rising order, so a strict comparison keeps the lowest of equals.
        closer = least < best
        nearest = tl.where(closer, first + at, index)
        least = tl.where(closer, least, best)
        if SOFT:
            part = tl.exp2(beta * (least[:, None] - d))
            kept = tl.exp2(beta * (least - best))
            if INDEXED:
                # Counted from the nearest code so far: whole numbers that vanish where w is one-hot.
                step = (code[None, :] - nearest[:, None]).to(tl.float32)
                moved = lead + total * (index - nearest).to(tl.float32)
                lead = moved * kept + tl.sum(part * step, 1)
            total = total * kept + tl.sum(part, 1)
        best = least
        index = nearest
    tl.store(INDEX + row, index, mask=row < N)
    dim = tl.arange(0, DIMS)
    target = row.to(tl.int64)[:, None] * D + dim[None, :]
    inside = (row < N)[:, None] & (dim < D)[None, :]
    tl.store(CODES + target, row_tile(C, index, K, 0, D, DIMS, False), mask=inside)
    if SOFT:
        tl.store(STATS + row, best, mask=row < N)
        tl.store(STATS + N + row, total, mask=row < N)
    if INDEXED:
        tl.store(STATS + 2 * N + row, lead / total, mask=row < N)
        tl.store(VALUE + row, index.to(tl.float32), mask=row < N)


def nearest_code(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.nearest_code`; two launches."""
    codes, index, _, _ = _lookup(features, codebook, 0.0, soft=False, indexed=False)
    return codes, index


def soft_lookup(
    features: Tensor, codebook: Tensor, beta: float, indexed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `reference.soft_lookup`; two launches."""
    return _lookup(features, codebook, beta, soft=True, indexed=indexed)


def _lookup(
    features: Tensor, codebook: Tensor, beta: float, *, soft: bool, indexed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    features, codebook = features.contiguous(), codebook.contiguous()
    n, d = features.shape
    codes = codebook.new_empty(n, d)
    index = features.new_empty(n, dtype=torch.int32)
    value = features.new_empty(n if indexed else 0, dtype=torch.float32)
    stats = features.new_empty(3 if indexed else 2, n if soft else 0, dtype=torch.float32)
    norms = squared_norms(codebook)
    meta = {**sizes(features.dtype, codebook), "SOFT": soft, "INDEXED": indexed}
    chosen = settings(lookup_name(n, indexed), meta["WIDE"], meta["DIMS"], features.device)
    grid = (triton.cdiv(n, chosen.blocks["ROWS"]),)
    given = (features, codebook, norms, codes, index, value, stats, n, beta * log2(e))
    launch(lookup_kernel, grid, *given, settings=chosen, **meta)
    return codes, index, value, stats


def lookup_name(n: int, indexed: bool) -> str:
    """Which tiles: in large batches tiles of more features, which read the codebook half as often."""
    if indexed:
        return "lookup index"
    return "lookup large" if n >= LARGE else "lookup"


def specializations() -> list[Specialization]:
    """One face and 16 of lafr-sd21 (D = 256) and lafr-mini (D = 64), 1024 codes, half and single precision."""
    forms = [
        _lookup_form(n, dtype, d, kind)
        for n in (4096, 65536)
        for dtype in ("fp16", "fp32")
        for d in (256, 64)
        for kind in ("hard", "embed", "index")
        # The others have one form for both.
        if n == 4096 or (dtype == "fp16" and kind == "embed")
    ]
    norms = [norms_form(dtype, d) for dtype in ("fp16", "fp32") for d in (256, 64)]
    backward = triton_backward.specializations()
    return [*norms, *forms, *backward, *triton_argmin.specializations()]


def _lookup_form(n: int, dtype: str, d: int, kind: str) -> Specialization:
    wide, soft, indexed = dtype == "fp32", kind != "hard", kind == "index"
    chosen = settings(lookup_name(n, indexed), wide, d, torch.device("cpu"))
    inputs = dict.fromkeys(("F", "C", "CODES"), f"*{dtype}")
    others = {"NORMS": "*fp32", "INDEX": "*i32", "VALUE": "*fp32", "STATS": "*fp32"}
    constants = {"K": 1024, "D": d, "DIMS": d, "WIDE": wide, "SOFT": soft, "INDEXED": indexed}
    return Specialization(
        f"lookup {kind} {dtype} N={n} D={d}",
        lookup_kernel,
        {**inputs, **others, "N": "i32", "beta": "fp32"},
        {**constants, **chosen.blocks},
        chosen,
        divisible=("N",),
        matrix=not wide,
        principal=(dtype, d) == ("fp16", 256) and (n > 4096 or kind != "embed"),
    )
