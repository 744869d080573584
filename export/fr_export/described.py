"""What a manifest says of an export's files."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto

from fr_deploy import __version__
from fr_deploy.manifest import (
    BATCH,
    SCHEMA,
    Batches,
    Component,
    ComponentName,
    File,
    Gpu,
    Manifest,
    Parity,
    Tensor,
)
from fr_export.onnx import graph_hash
from fr_export.options import Options
from fr_export.state import Made, file_of
from fr_export.subject import Subject
from fr_kernels.sources import source_state

_ELEMENTS = {
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
DRIVER = "580"
"""Of CUDA 13, which the extras `rtx` and `trt` bring."""


def files_of(folder: Path, file: str) -> tuple[File, ...]:
    """An ONNX file and that of its weights, where they lie beside it."""
    graph = onnx.load(folder / file, load_external_data=False).graph
    beside = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
    data = (file_of(folder, name, "data") for name in sorted(beside))
    return file_of(folder, file, "onnx"), *data


def ends_of(path: Path) -> dict[str, Any]:
    """Inputs and outputs of an ONNX file, as JSON."""
    graph = onnx.load(path, load_external_data=False).graph
    return {"inputs": [_end(v) for v in graph.input], "outputs": [_end(v) for v in graph.output]}


def _end(value: Any) -> tuple[str, str, list[int | str]]:
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else BATCH for d in kind.shape.dim]
    return value.name, _ELEMENTS[kind.elem_type], shape


def manifest_of(
    subject: Subject,
    options: Options,
    graphs: Mapping[ComponentName, Made],
    engines: Mapping[ComponentName, Made],
    parity: Parity,
) -> Manifest:
    """All that is to be known of an export whose ONNX files were verified."""
    preset, engine = subject.graph.preset, options.engine
    versions = {name: version(name) for name in ("onnx", "onnxscript")} | {
        "torch": torch.__version__
    }
    gpu = None
    if engine is not None:
        details = next(iter(engines.values())).details
        versions |= {engine.flavour: details["version"]}
        name = torch.cuda.get_device_name(0) if engine.flavour == "tensorrt" else None
        gpu = Gpu(name, tuple(details["capabilities"]), DRIVER)
    return Manifest(
        schema=SCHEMA,
        fr_deploy=__version__,
        commit=source_state(Path(__file__).parent)[0],
        family="lafr",
        preset=preset.name,
        size=preset.size,
        weights=subject.weights,
        loras=subject.loras,
        graph=graph_hash(subject.graph),
        format=options.format,
        precision=options.precision,
        components=tuple(_component(n, graphs[n], engines.get(n)) for n in options.names),
        batches=tuple(Batches(b.least, b.best, b.most) for b in options.batches),
        versions=versions,
        gpu=gpu,
        kernels={},
        parity=parity,
        verified="onnx" if engine is None else "onnx only",
    )


def _component(name: ComponentName, graph: Made, engine: Made | None) -> Component:
    details = graph.details
    return Component(
        name=name,
        files=graph.files if engine is None else (*graph.files, *engine.files),
        inputs=tuple(map(_tensor, details["inputs"])),
        outputs=tuple(map(_tensor, details["outputs"])),
        half=details["half"],
        half_layers=None if engine is None else engine.details["half_layers"],
    )


def _tensor(end: Any) -> Tensor:
    name, element, shape = end
    return Tensor(name, element, tuple(shape))
