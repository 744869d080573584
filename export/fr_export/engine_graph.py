"""What an ONNX file says before any engine is built: its weights, its batch, and the dtype of its multiplications."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto

from fr_deploy.errors import ModelError

MULTIPLYING = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention")
Precision = Literal["float16", "bfloat16", "float32"]
_PRECISIONS: dict[int, Precision] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
_SHAPE_BYTES = 4096
"""Constants above hold no shape; inference takes them without their values, and a message ends at 2 GiB."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class EngineGraph:
    """Of one ONNX file."""

    parameters: int
    """Bytes of the weights, each counted once."""
    nodes: int
    operators: tuple[str, ...]
    inputs: dict[str, tuple[int | None, ...]]
    """Shape by name; None is a dimension that varies."""
    half: float
    """Share of the multiplications in float16 or bfloat16, from 0 to 1."""
    precision: Precision
    """That of most multiplications. `lafr-mini` in float16 has 0.98 in it, and its adapter, whose codebook distances
    stay float32, the least of the parts."""

    @property
    def dynamic(self) -> bool:
        """Whether an input's batch varies."""
        return any(None in shape for shape in self.inputs.values())


def read_graph(path: Path) -> EngineGraph:
    """Read a graph without its external weights.

    Raises:
        ModelError: no ONNX file, one that contradicts itself, or one with more than the batch dynamic.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        parameters = sum(_bytes(tensor) for tensor in model.graph.initializer)
        inputs = {value.name: _given(value) for value in model.graph.input}
        work = _work_by_precision(model)
    except ModelError:
        raise
    except Exception as error:  # protobuf, onnx and the file system each have their own
        raise ModelError(
            f"{path} cannot be read as ONNX: {error}; write it anew with: fr-deploy export MODEL -o DIR"
        ) from error
    if any(None in shape[1:] for shape in inputs.values()):
        raise ModelError(
            f"{path} has inputs {inputs}; only the first dimension, the batch, may vary"
        )
    operators = tuple(sorted({node.op_type for node in model.graph.node}))
    half = sum(n for name, n in work.items() if name != "float32") / sum(work.values())
    most = max(work, key=work.__getitem__)
    return EngineGraph(parameters, len(model.graph.node), operators, inputs, half, most)


def half_fraction(path: Path) -> float:
    """The share of a graph's multiplications that are in float16 or bfloat16, from 0 to 1.

    Convolutions, matrix products and attention count, each by its multiply-adds at batch 1.

    Raises:
        ModelError: as `read_graph`.
    """
    return read_graph(path).half


def _work_by_precision(model: Any) -> dict[Precision, int]:
    """Multiply-adds at batch 1."""
    _fix_batch(model)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > _SHAPE_BYTES:
            tensor.ClearField("raw_data")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    shapes = {v.name: tuple(d.dim_value for d in _dims(v)) for v in values}
    for tensor in graph.initializer:
        types[tensor.name], shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    work: dict[Precision, int] = {}
    for node in graph.node:
        if node.op_type in MULTIPLYING:
            precision = _PRECISIONS[types[node.input[0]]]
            work[precision] = work.get(precision, 0) + _work(node, shapes)
    if not any(work.values()):
        raise ModelError("the graph multiplies nothing, so it has no precision to speak of")
    return work


def _fix_batch(model: Any) -> None:
    """One face, so that every shape follows from it; shapes the file gives for other reasons are left out."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in _dims(value):
            if not dim.HasField("dim_value") and "*" not in dim.dim_param:
                dim.dim_value = 1
    known = [v for v in model.graph.value_info if all(d.HasField("dim_value") for d in _dims(v))]
    del model.graph.value_info[:]
    model.graph.value_info.extend(known)


def _work(node: Any, shapes: dict[str, Shape]) -> int:
    """Multiply-adds."""
    known = [shapes.get(name, ()) for name in (*node.input[:2], node.output[0])]
    if not all(shape and all(shape) for shape in known):
        raise ModelError(
            f"the shapes of node {node.name!r} ({node.op_type}) are not known: {known}"
        )
    first, second, out = known
    match node.op_type:
        case "Conv":
            return math.prod(out) * math.prod(second[1:])
        case "ConvTranspose":
            return math.prod(first) * math.prod(second[1:])
        case "Gemm":
            return math.prod(out) * first[0 if _attribute(node, "transA") else 1]
        case "MatMul":
            return math.prod(out) * first[-1]
        case _:  # Attention of [B, heads, N, D]: the scores, and as much again for the values
            return 2 * math.prod(first) * second[-2]


def _attribute(node: Any, name: str) -> int:
    return next((a.i for a in node.attribute if a.name == name), 0)


def _given(value: Any) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in _dims(value))


def _dims(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


def _bytes(tensor: Any) -> int:
    bits = {TensorProto.INT4: 4, TensorProto.UINT4: 4}.get(tensor.data_type)
    size = bits or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.prod(tensor.dims) * size // 8


def layers_of(information: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and output formats of each layer, from the JSON of TensorRT's engine inspector.

    Raises:
        ModelError: JSON of another form.
    """
    try:
        for layer in json.loads(information)["Layers"]:
            yield layer["Name"], tuple(out["Format/Datatype"] for out in layer["Outputs"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"TensorRT describes its engine in another form than expected ({error!r}): {information[:200]}"
        ) from error
