"""The restoration graph's operators in standard ONNX, for `torch.onnx.export(custom_translation_table=...)`.

What DESIGN.md's numeric contract wants in float32 is float32 in the file, whatever the weights' dtype: norm statistics,
softmax and codebook distances. In a float32 graph none of the casts below is written.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset20

from fr_kernels.phase_shuffle.reference import PHASES

op: Any = opset20
"""Its annotations are of ONNX's type variables, which a trace's values are not."""
FLOAT = ir.DataType.FLOAT
_LAST = 2**63 - 1
"""Where ONNX's Slice ends at the end."""


def phase_shuffle(y: Any, impl: str = "auto") -> Any:
    """`fr_kernels.phase_shuffle`: four shifted windows, one a phase, interleaved by columns and then by rows.

    DepthToSpace does the same; onnxruntime 1.31 takes 27 ms of a CPU core for [1, 512, 65, 65] by it, and 5 by this.
    """
    del impl
    channels, height, width = y.shape[1] // 4, y.shape[2] - 1, y.shape[3] - 1
    rows: list[list[Any]] = [[], []]
    for phase, (py, px) in enumerate(PHASES):
        first, last = (phase * channels, py, px), ((phase + 1) * channels, py + height, px + width)
        window = op.Slice(y, _ints(*first), _ints(*last), _ints(1, 2, 3))
        rows[py].append(op.Unsqueeze(window, _ints(4)))
    wide = [
        op.Reshape(op.Concat(*row, axis=4), _ints(0, channels, height, 1, 2 * width))
        for row in rows
    ]
    return op.Reshape(op.Concat(*wide, axis=3), _ints(0, channels, 2 * height, 2 * width))


def pixel_unshuffle(x: Any, downscale_factor: int) -> Any:
    """`aten.pixel_unshuffle`: SpaceToDepth, whose channels are the last to vary, reordered by whole planes.

    The exporter's own transposes single values: 7 ms for a 520 px picture in onnxruntime 1.31, and 2 by this.
    """
    channels, height, width = x.shape[1], *(side // downscale_factor for side in x.shape[2:])
    square = downscale_factor**2
    deep = op.SpaceToDepth(x, blocksize=downscale_factor)
    planes = op.Reshape(deep, _ints(0, square, channels, height * width))
    planes = op.Transpose(planes, perm=[0, 2, 1, 3])
    return op.Reshape(planes, _ints(0, channels * square, height, width))


def nearest_code(
    features: Any, codebook: Any, straight_through: bool = False, impl: str = "auto"
) -> tuple[Any, Any]:
    """`fr_kernels.nearest_code`: ties to the lowest index; a code with a NaN is infinitely far.

    The NaN rule is in the codebook's constants, which a runtime folds when it loads the file.
    """
    del straight_through, impl
    codes = _wide(codebook, codebook.dtype)
    square = op.ReduceSumSquare(codes, _ints(1), keepdims=0)
    square = op.Where(op.IsNaN(square), _float(np.inf), square)
    codes = op.Where(op.IsNaN(codes), _float(0), codes)
    distances = op.Gemm(_wide(features, features.dtype), codes, square, alpha=-2.0, transB=1)
    index = op.ArgMin(distances, axis=1, keepdims=0, select_last_index=0)
    return op.Gather(codebook, index), op.Cast(index, to=ir.DataType.INT32)


def group_norm(
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """`aten.group_norm`: GroupNormalization came with opset 21, and a group is an instance without its channels."""
    del cudnn_enabled
    ones, zeros = (op.Constant(value=ir.tensor(v)) for v in _ones_and_zeros(groups))
    grouped = op.Reshape(_wide(x, x.dtype), _ints(0, groups, -1))
    normed = op.InstanceNormalization(grouped, ones, zeros, epsilon=eps)
    normed = op.Reshape(normed, _ints(0, *x.shape[1:]))
    along = _ints(1, -1, *(1 for _ in x.shape[2:]))
    weight, bias = (op.Reshape(_wide(t, t.dtype), along) for t in (weight, bias))
    return _back(op.Add(op.Mul(normed, weight), bias), x.dtype)


def silu(x: Any) -> Any:
    """`aten.silu`, rounded once."""
    wide = _wide(x, x.dtype)
    return _back(op.Mul(wide, op.Sigmoid(wide)), x.dtype)


def softmax(x: Any, dim: int, dtype: Any = None) -> Any:
    """`aten.softmax.int`."""
    assert dtype is None, f"softmax to {dtype}: the graph asks for none"
    return _softmax(x, x.dtype, dim)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`aten.scaled_dot_product_attention` of [B, heads, N, D], without mask or dropout."""
    assert attn_mask is None, "the graph has no attention mask"
    assert {dropout_p, is_causal, enable_gqa} == {0}, "nor dropout, causality or shared heads"
    dtype, factor = query.dtype, query.shape[-1] ** -0.5 if scale is None else scale
    if factor != 1:
        query = op.Mul(query, op.Constant(value=ir.tensor(factor, dtype=dtype)))
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(_softmax(scores, dtype, -1), value)


def slice_scatter(
    into: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """`aten.slice_scatter`: what lies before and behind the slice, around it. The exporter's own is a ScatterND."""
    assert step == 1, f"a slice with step {step}: the graph has none"
    axis = _ints(dim)
    before = op.Slice(into, _ints(0), _ints(start or 0), axis)
    behind = op.Slice(into, _ints(_LAST if end is None else end), _ints(_LAST), axis)
    return op.Concat(before, source, behind, axis=dim)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _float(value: float) -> Any:
    return op.Constant(value_float=float(value))


def _ones_and_zeros(count: int) -> tuple[Any, Any]:
    return np.ones(count, np.float32), np.zeros(count, np.float32)


def _softmax(x: Any, dtype: Any, dim: int) -> Any:
    return _back(op.Softmax(_wide(x, dtype), axis=dim), dtype)


def _wide(x: Any, dtype: Any) -> Any:
    """x, which is of `dtype`, in float32. (Only an operator's arguments know their dtype.)"""
    return x if dtype == FLOAT else op.Cast(x, to=FLOAT)


def _back(x: Any, dtype: Any) -> Any:
    """x, which is float32, in `dtype`."""
    return x if dtype == FLOAT else op.Cast(x, to=dtype)


_KERNELS, _ATEN = torch.ops.fr_kernels, torch.ops.aten
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    _KERNELS.phase_shuffle.default: phase_shuffle,
    _KERNELS.nearest_code.default: nearest_code,
    _ATEN.group_norm.default: group_norm,
    _ATEN.silu.default: silu,
    _ATEN.softmax.int: softmax,
    _ATEN.scaled_dot_product_attention.default: attention,
    _ATEN.slice_scatter.default: slice_scatter,
    _ATEN.pixel_unshuffle.default: pixel_unshuffle,
}
