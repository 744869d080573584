"""A bfloat16 graph as onnxruntime can run it: onnxruntime's CPU kernels take no bfloat16."""

import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

EXACT, ROUNDED = "/exact", "/rounded"
"""Behind the name of a tensor: before it is rounded, and as bfloat16, which onnxruntime hands to nobody."""
NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


@contextmanager
def runnable(path: Path) -> Generator[Path]:
    """A file that onnxruntime runs on a CPU and that computes what `path` does, for as long as the context lasts.

    Without bfloat16 it is the file itself. With it, a copy in float32 in which everything that was bfloat16 is rounded
    to bfloat16 where it is made: products are exact and sums are float32, as in a GPU's matrix instructions.
    Names of tensors stay; inputs and outputs that were bfloat16 are float32.
    """
    model = onnx.load(path, load_external_data=False)
    if not any(v.type.tensor_type.elem_type == NARROW for v in _values(model)):
        yield path
        return
    folder = Path(tempfile.mkdtemp(prefix="fr-deploy-"))
    try:
        load_external_data_for_model(model, str(path.parent))
        widen(model)
        wide = folder / path.name
        onnx.save(model, wide, save_as_external_data=True, location="weights")
        yield wide
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def widen(model: Any) -> None:
    """Put float32 in place of bfloat16, and a rounding to bfloat16 behind each operator that gave it.

    Args:
        model: onnx.ModelProto with its weights; changed. Operators' subgraphs and functions, which our exports have
            not, stay as they are.
    """
    narrow = {v.name for v in _values(model) if v.type.tensor_type.elem_type == NARROW}
    for value in _values(model):
        if value.name in narrow:
            value.type.tensor_type.elem_type = WIDE
    for tensor in model.graph.initializer:
        if tensor.data_type == NARROW:
            tensor.CopyFrom(_wide(tensor))
    nodes = [made for node in model.graph.node for made in _rounded(node, narrow)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _values(model: Any) -> list[Any]:
    return [*model.graph.input, *model.graph.output, *model.graph.value_info]


def _rounded(node: Any, narrow: set[str]) -> Iterator[Any]:
    """The node in float32; each output that was bfloat16 goes through bfloat16 under a name of its own."""
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == NARROW:
            attribute.i = WIDE
        if attribute.t.data_type == NARROW:
            attribute.t.CopyFrom(_wide(attribute.t))
    outputs = [name for name in node.output if name in narrow]
    exact = {name: f"{name}{EXACT}" for name in outputs}
    node.output[:] = [exact.get(name, name) for name in node.output]
    yield node
    for name in outputs:
        yield helper.make_node("Cast", [exact[name]], [f"{name}{ROUNDED}"], to=NARROW)
        yield helper.make_node("Cast", [f"{name}{ROUNDED}"], [name], to=WIDE)


def _wide(tensor: Any) -> Any:
    values: Any = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(values.astype(np.float32), tensor.name)
