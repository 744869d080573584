"""The first tensor at which an exported part departs from one that is right."""

import math
import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from fr_export.session import Arrays, run_file
from fr_export.widened import EXACT, ROUNDED, runnable

HELD_BYTES = 500_000_000
"""Of tensors at once, from either file."""
_NUMBERED = re.compile(r"^val_\d+$")
"""Names the exporter counts: with a cast more or less they are another tensor's."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Departure:
    """Where two files begin to differ."""

    path: Path
    tensor: str
    operator: str
    error: float
    """Norm of the difference over the norm of the right tensor."""
    largest: float
    weights: tuple[str, ...]
    """Constants this operator reads, or that were computed into those it reads, that differ."""

    def __str__(self) -> str:
        weights = f"; other constants: {', '.join(self.weights)}" if self.weights else ""
        return (
            f"{self.path}: the first tensor that departs is {self.tensor!r}, made by {self.operator}: error "
            f"{self.error:.2e} of the whole, {self.largest:.3g} at most{weights}"
        )


def first_departure(
    ours: Path, right: Path, given: Mapping[str, np.ndarray[Any, Any]], tolerance: float
) -> Departure | None:
    """Run two files on one input, node by node as they are written, and compare tensor by tensor in order.

    Args:
        ours: the file in question.
        right: one that computes what it should. Where both have the same operators in the same order, all tensors are
            compared; else those that have the same name and shape, counted names aside.
        given: inputs by name, float32 where the file takes half.
        tolerance: relative error a tensor may have; 0 for files that should hold the same. With any, integers are not
            compared, and the right file takes the codes of the other: a flipped one is no departure.

    Returns:
        None where no tensor departs.

    Raises:
        ModelError: onnxruntime does not load a file.
    """
    with runnable(ours) as mine, runnable(right) as wanted:
        found = _first_departure(mine, wanted, given, tolerance)
    return None if found is None else replace(found, path=ours)


def _first_departure(
    ours: Path, right: Path, given: Mapping[str, np.ndarray[Any, Any]], tolerance: float
) -> Departure | None:
    models = [onnx.load(path, load_external_data=False) for path in (ours, right)]
    inputs = [_as_typed(model, given) for model in models]
    if tolerance and any(value.name == "codes" for value in models[0].graph.output):
        inputs[1] |= run_file(ours, inputs[0], ["codes"], plain=True)
        _take(models[1], "codes")
    mine, wanted = (
        [n for n in model.graph.node if n.output and not n.output[0].endswith(ROUNDED)]
        for model in models
    )
    if [node.op_type for node in mine] == [node.op_type for node in wanted]:
        pairs = [(a, b.output[0]) for a, b in zip(mine, wanted, strict=True)]
    else:
        known = {node.output[0] for node in wanted}
        pairs = [
            (node, node.output[0])
            for node in mine
            if node.output[0] in known and not _NUMBERED.match(node.output[0])
        ]
    sizes = _bytes_by_name(models[0])
    for some in _groups(pairs, sizes):
        values = _values(ours, models[0], inputs[0], [node.output[0] for node, _ in some])
        others = _values(right, models[1], inputs[1], [name for _, name in some])
        for node, name in some:
            ints = not np.issubdtype(values[node.output[0]].dtype, np.floating)
            found = None if ints and tolerance else _apart(values[node.output[0]], others[name])
            if found is not None and not found[0] <= tolerance:
                weights = _other_weights((ours, right), models, node)
                name = node.output[0].removesuffix(EXACT)
                return Departure(ours, name, node.op_type, *found, weights)
    return None


def _take(model: Any, name: str) -> None:
    """Make an inner tensor an input."""
    (output,) = (value for value in model.graph.output if value.name == name)
    (node,) = (node for node in model.graph.node if name in node.output)
    model.graph.node.remove(node)
    model.graph.output.remove(output)
    model.graph.input.append(output)


def _apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    """Relative and largest error; None where they are no numbers to compare."""
    if a.shape != b.shape or not all(np.issubdtype(x.dtype, np.number) for x in (a, b)):
        return None
    difference = a.astype(np.float64) - b.astype(np.float64)
    difference[(a == b)] = 0  # infinities
    norm = float(np.linalg.norm(b.astype(np.float64)))
    error = float(np.linalg.norm(difference))
    return error / norm if norm else math.copysign(error and math.inf, 1), float(
        np.abs(difference).max(initial=0)
    )


def _groups(pairs: list[Any], sizes: Mapping[str, int]) -> Iterator[list[Any]]:
    """In order, each as many as may be held at once."""
    some: list[Any] = []
    held = 0
    for pair in pairs:
        some.append(pair)
        held += sizes.get(pair[0].output[0], 0)
        if held > HELD_BYTES:
            yield some
            some, held = [], 0
    if some:
        yield some


def _bytes_by_name(model: Any) -> dict[str, int]:
    """Of one face; an unknown shape counts nothing."""
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    dims = {v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim] for v in values}
    return {name: 4 * math.prod(shape) for name, shape in dims.items()}


def _values(path: Path, model: Any, given: Arrays, names: list[str]) -> Arrays:
    with _opened(path, model, names) as file:
        return run_file(file, given, names, plain=True)


@contextmanager
def _opened(path: Path, model: Any, names: list[str]) -> Generator[Path]:
    """The file with inner tensors as outputs, beside it: its weights may lie there."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    file = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        file.write_bytes(opened.SerializeToString())
        yield file
    finally:
        file.unlink(missing_ok=True)


def _as_typed(model: Any, given: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    types = {
        i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        for i in model.graph.input
    }
    return {name: value.astype(types[name]) for name, value in given.items()}


def _other_weights(paths: tuple[Path, Path], models: list[Any], node: Any) -> tuple[str, ...]:
    """Names of the node's constants that hold other numbers in the other file."""
    mine, wanted = (
        {t.name: t for t in model.graph.initializer if t.data_type in _FLOATS} for model in models
    )
    return tuple(
        name
        for name in node.input
        if name in mine
        and name in wanted
        and not np.array_equal(
            _array(mine[name], paths[0]), _array(wanted[name], paths[1]), equal_nan=True
        )
    )


def _array(tensor: Any, path: Path) -> np.ndarray[Any, Any]:
    if uses_external_data(tensor):
        load_external_data_for_tensor(tensor, str(path.parent))
    return numpy_helper.to_array(tensor).astype(np.float32)
