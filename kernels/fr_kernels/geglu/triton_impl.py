"""GEGLU in Triton (formula: `reference.py`).

x    [rows, 2D]   read once
y    [rows, D]    written once; backward reads dy and x once and writes dx once
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import precision, tuned

# 1280, 2560 and 5120 are multiples of 256.
DEFAULT = Settings({"ROWS": 8, "COLUMNS": 256}, num_warps=8, num_stages=1)
SPACE = {"ROWS": (1, 64), "COLUMNS": (64, 2048), "num_warps": (1, 16)}


@triton.jit
def tile_of(rows, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(rows [ROWS, 1], columns [1, COLUMNS], mask) of this program; neighbours share rows."""
    across = tl.cdiv(D, COLUMNS)
    # 64-bit: 64 images of 64 x 64 tokens of 2 x 4096 numbers are 2^31.
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    return row[:, None], column[None, :], (row < rows)[:, None] & (column < D)[None, :]


@triton.jit
def normal(gate):
    """The normal distribution at `gate`."""
    return 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))


@triton.jit
def forward_kernel(X, Y, rows, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: ROWS rows x COLUMNS columns of y."""
    row, column, inside = tile_of(rows, D, ROWS, COLUMNS)
    x = X + row * (2 * D) + column
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + D, mask=inside, other=0.0).to(tl.float32)
    y = value * (gate * normal(gate))
    tl.store(Y + row * D + column, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(DY, X, DX, rows, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """One program: ROWS rows x COLUMNS columns of dy."""
    row, column, inside = tile_of(rows, D, ROWS, COLUMNS)
    offset = row * (2 * D) + column
    value = tl.load(X + offset, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(X + offset + D, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(DY + row * D + column, mask=inside, other=0.0).to(tl.float32)
    share = normal(gate)
    dvalue = dy * (gate * share)
    # 1 / sqrt(2 pi)
    slope = share + gate * (0.3989422804014327 * tl.exp(-0.5 * gate * gate))
    tl.store(DX + offset, dvalue.to(DX.dtype.element_ty), mask=inside)
    tl.store(DX + offset + D, (dy * value * slope).to(DX.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    """See `reference.geglu`; one launch."""
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
    _launch(forward_kernel, y, x, y)
    return y


def geglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """See `reference.geglu_backward`; one launch."""
    grad, x = grad.contiguous(), x.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(backward_kernel, grad, grad, x, dx)
    return dx


def _launch(kernel, y: Tensor, *tensors: Tensor) -> None:
    """Over the elements of y or its gradient."""
    columns = y.shape[-1]
    rows = y.numel() // columns
    key = f"{kernel.__name__.removesuffix('_kernel')} D={columns} {precision(y.dtype)}"
    settings = tuned("geglu", key, DEFAULT, SPACE, y.device)
    tiles = [
        triton.cdiv(size, settings.blocks[block])
        for size, block in ((rows, "ROWS"), (columns, "COLUMNS"))
    ]
    launch(kernel, (tiles[0] * tiles[1],), *tensors, rows, columns, settings=settings)


def specializations() -> list[Specialization]:
    """One form for all widths of the UNet, whose D are multiples of 16."""
    pointers = {forward_kernel: ("X", "Y"), backward_kernel: ("DY", "X", "DX")}
    return [
        Specialization(
            f"{kernel.__name__.removesuffix('_kernel')} {dtype} D=16n",
            kernel,
            {**dict.fromkeys(names, f"*{dtype}"), "rows": "i32", "D": "i32"},
            dict(DEFAULT.blocks),
            DEFAULT,
            divisible=("rows", "D"),
            principal=dtype == "fp16",
        )
        for kernel, names in pointers.items()
        for dtype in ("fp16", "fp32")
    ]
