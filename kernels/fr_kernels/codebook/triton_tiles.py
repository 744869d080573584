"""What the codebook kernels share: row tiles, their products, the codes' squared norms, launch settings."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import tuned

NORMS = Settings({"COLS": 8}, num_warps=4, num_stages=1)
# (kernel, computes in float32): (features, codes, warps, pipeline stages). Every entry compiles without spills for 64
# and 256 dimensions on each architecture and fits the 99 KiB of the smallest. 16-bit: as large as that allows.
# float32: small, as its products run in registers.
TILES = {
    ("lookup", False): (64, 64, 4, 3),
    ("lookup index", False): (64, 32, 8, 3),
    ("lookup large", False): (128, 32, 8, 3),
    ("rows", False): (64, 32, 8, 2),
    ("codes", False): (64, 32, 8, 2),
    ("chosen", False): (64, 64, 8, 2),
    ("lookup", True): (32, 32, 8, 2),
    ("lookup index", True): (32, 32, 8, 2),
    ("lookup large", True): (32, 32, 8, 2),
    ("rows", True): (32, 16, 8, 2),
    ("codes", True): (16, 32, 4, 2),
    ("chosen", True): (32, 32, 8, 1),
}


@triton.jit
def row_tile(P, row, count, start, D: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """[len(row), WIDTH]: dimensions start .. of rows of a [count, D] matrix, zero outside; float32 if WIDE."""
    dim = start + tl.arange(0, WIDTH)
    mask = (row < count)[:, None] & (dim < D)[None, :]
    tile = tl.load(P + row.to(tl.int64)[:, None] * D + dim[None, :], mask=mask, other=0.0)
    if WIDE:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def products(
    X, x, row, N, Y, y, line, M, D: tl.constexpr, DIMS: tl.constexpr, DEPTH: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """x . y in float32: [len(row), len(line)], of the tiles x, y [., DIMS] of the matrices X, Y.

    Below the full depth the tiles are read again, DEPTH dimensions at a time: a product without matrix instructions
    keeps both operands in registers.
    """
    if DEPTH == DIMS:
        out = tl.dot(x, tl.trans(y), input_precision="ieee")
    else:
        out = tl.zeros((row.shape[0], line.shape[0]), tl.float32)
        for start in range(0, DIMS, DEPTH):
            left = row_tile(X, row, N, start, D, DEPTH, WIDE)
            right = row_tile(Y, line, M, start, D, DEPTH, WIDE)
            out = tl.dot(left, tl.trans(right), out, input_precision="ieee")
    return out


@triton.jit
def norms_kernel(C, OUT, K: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr, DIMS: tl.constexpr):
    """One program: |c|^2 of COLS codes."""
    code = tl.program_id(0) * COLS + tl.arange(0, COLS)
    c = row_tile(C, code, K, 0, D, DIMS, True)
    tl.store(OUT + code, tl.sum(c * c, 1), mask=code < K)


def squared_norms(codebook: Tensor) -> Tensor:
    """|c|^2, float32 [K]; one launch."""
    k, d = codebook.shape
    norms = codebook.new_empty(k, dtype=torch.float32)
    grid = (triton.cdiv(k, NORMS.blocks["COLS"]),)
    launch(norms_kernel, grid, codebook, norms, settings=NORMS, K=k, D=d, DIMS=padded(d))
    return norms


def padded(d: int) -> int:
    """Dimensions of a tile: a power of two, and at least the 16 of a product."""
    return max(16, triton.next_power_of_2(d))


def sizes(first: torch.dtype, codebook: Tensor) -> dict[str, Any]:
    """Constants of a kernel that reads a matrix of type `first` and the codebook; WIDE: computes in float32."""
    k, d = codebook.shape
    wide = first != codebook.dtype or first == torch.float32
    return {"K": k, "D": d, "DIMS": padded(d), "WIDE": wide}


def settings(kernel: str, wide: bool, dims: int, device: torch.device) -> Settings:
    """Settings of a kernel of `TILES`, the same on every architecture."""
    rows, columns, warps, stages = TILES[kernel, wide]
    if kernel == "rows" and wide and dims <= 64:
        stages = 1  # 2 spill 8 bytes on sm_90; at 256 dimensions 1 spills 80 on sm_100
    blocks = {"ROWS": rows, "COLS": columns}
    if kernel != "chosen":
        blocks["DEPTH"] = min(dims, 32) if wide else dims
    key = f"{kernel} d={dims} {32 if wide else 16}-bit"
    space = {"ROWS": (16, 256), "COLS": (16, 128), "num_warps": (2, 16), "num_stages": (1, 5)}
    if wide and "DEPTH" in blocks:
        space["DEPTH"] = (16, dims)
    return tuned("codebook", key, Settings(blocks, warps, stages), space, device)


def norms_form(dtype: str, d: int) -> Specialization:
    """`norms_kernel` for 1024 codes."""
    return Specialization(
        f"norms {dtype} D={d}",
        norms_kernel,
        {"C": f"*{dtype}", "OUT": "*fp32"},
        {"K": 1024, "D": d, "DIMS": d, **NORMS.blocks},
        NORMS,
        principal=(dtype, d) == ("fp16", 256),
    )
