"""Exported directories of components that compute nothing, made in no time: what goes in comes out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from exported_toy import file_of
from fr_deploy.manifest import BATCH, PARTS, Component, Manifest, Tensor, write_manifest
from manifest_cases import directory

ELEMENTS = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
}
SIZE = 64


def micro(folder: Path, latent: Any, *, whole: bool = False) -> Manifest:
    """Write a directory whose latents are the faces, in `latent`; codes are an output, too."""
    base = directory(folder, "onnx")
    kinds: list[Any] = ["uint8", latent, latent, latent, "uint8"]
    names = ["faces", "latent", "aligned", "made", "restored"]
    if whole:
        parts = [_part(folder, "whole", ("faces", "uint8"), ("restored", "uint8"), codes=True)]
    else:
        parts = [
            _part(folder, name, (names[i], kinds[i]), (names[i + 1], kinds[i + 1]), codes=i == 1)
            for i, name in enumerate(PARTS)
        ]
    manifest = replace(
        base, components=tuple(parts), precision="fp16" if latent == "float16" else "fp32"
    )
    write_manifest(folder, manifest)
    return manifest


def _part(folder: Path, name: Any, taken: Any, given: Any, *, codes: bool) -> Component:
    shape = (BATCH, SIZE, SIZE, 3)
    sides = {side: Tensor(side, kind, shape) for side, kind in (taken, given)}
    (first, last), nodes = (sides[taken[0]], sides[given[0]]), []
    nodes.append(helper.make_node("Cast", [first.name], [last.name], to=ELEMENTS[last.dtype]))
    outputs = [last]
    if codes:
        outputs.append(Tensor("codes", "int32", (BATCH, 1)))
        nodes.append(helper.make_node("Cast", [first.name], ["whole"], to=TensorProto.INT32))
        axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
        nodes.append(helper.make_node("Constant", [], ["axes"], value=axes))
        nodes.append(helper.make_node("ReduceSum", ["whole", "axes"], ["sums"], keepdims=0))
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        nodes.append(helper.make_node("Constant", [], ["one"], value=one))
        nodes.append(helper.make_node("ReduceMax", ["sums", "one"], ["codes"], keepdims=1))
    graph = helper.make_graph(nodes, name, [_value(first)], [_value(tensor) for tensor in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return Component(name, (file_of(folder, f"{name}.onnx"),), (first,), tuple(outputs), 0.0, None)


def _value(tensor: Tensor) -> Any:
    return helper.make_tensor_value_info(tensor.name, ELEMENTS[tensor.dtype], tensor.shape)


def faces(count: int) -> np.ndarray:
    """Bytes by seed: uint8 [count, 64, 64, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
