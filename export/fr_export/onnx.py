"""The restoration graph, whole or by part, as an .onnx file of standard operators, weights inside."""

import glob
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import torch

from fr_deploy import __version__
from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import ComponentName
from fr_deploy.models.layers import Layer, TransposedUpsample
from fr_deploy.models.parts import ENDS, Part, example
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.metadata import GraphMetadata

OPSETS = range(20, 25)
"""20 is the first with Gelu."""
LEAST_OPSET = {"float32": 20, "float16": 20, "bfloat16": 22}
"""By dtype of the weights; 22 is the first whose Conv takes bfloat16. TensorRT-RTX 1.7.1 builds all five."""
BATCH = 64
"""The largest batch the shapes are reasoned about for; a runtime takes more."""
EMBEDDED_BYTES = 2_000_000_000
"""Weights above lie in a file of their own: a protobuf message ends at 2 GiB."""
ONNXSCRIPT = "onnxscript>=0.7,<0.8"


def export_onnx(
    graph: RestorationGraph,
    path: Path,
    *,
    part: ComponentName = "whole",
    opset: int | None = None,
) -> None:
    """Write a graph or a part of it as ONNX, with the inputs and outputs that `fr_deploy.models.parts.ENDS` names.

    Standard operators only; batch is dynamic, S the preset's. The same graph gives the same bytes. The file appears
    whole or not at all; above 2 GB of weights they lie beside it in `<name>-<hash>.data`.

    Args:
        graph: float32, float16 or bfloat16 on any device; comes back as it was. onnxruntime's CPU kernels take no
            bfloat16: `fr_export.widened.runnable` makes a file that they run.
        path: of the .onnx file; replaced if it is there.
        part: the whole graph, or one of its four parts.
        opset: version of ONNX's operators, 20 to 24, in bfloat16 22 to 24; by default the lowest.

    Raises:
        UsageError: another opset, or weights of another dtype.
        ResourceError: onnxscript is missing, or the disk is full.
    """
    metadata = graph_metadata(graph, opset, part)
    model = _described(_translated(graph, part, int(metadata.opset)), metadata)
    weights = (value.const_value for value in model.graph.initializers.values())
    if sum(0 if weight is None else weight.nbytes for weight in weights) > EMBEDDED_BYTES:
        _write_beside(model, path, f"{path.name}-{metadata.graph[:16]}.data")
    else:
        _write(model, path)


def graph_metadata(
    graph: RestorationGraph, opset: int | None = None, part: ComponentName = "whole"
) -> GraphMetadata:
    """What the file says of itself.

    Raises:
        UsageError: weights of a dtype that has no export, or an opset the dtype does not have.
        ResourceError: onnxscript is missing.
    """
    dtype = _dtype(graph)
    if dtype not in LEAST_OPSET:
        raise UsageError(f"the graph's weights are {dtype}; allowed are {', '.join(LEAST_OPSET)}")
    least = LEAST_OPSET[dtype]
    opset = least if opset is None else opset
    if not least <= opset <= OPSETS[-1]:
        raise UsageError(f"opset is {opset}; allowed in {dtype} are {least} to {OPSETS[-1]}")
    versions = {"torch": torch.__version__, "onnxscript": _onnxscript_version()}
    digest = graph_hash(graph, part)
    return GraphMetadata(
        __version__, graph.preset.name, dtype, part, graph=digest, opset=str(opset), **versions
    )


def graph_hash(graph: RestorationGraph, part: ComponentName = "whole") -> str:
    """SHA-256 of the preset and of all weights of a part, their dtype and names, whatever their device and strides."""
    digest = hashlib.sha256(json.dumps(asdict(graph.preset), sort_keys=True).encode())
    for name, tensor in sorted(Part(graph, part).state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dtype(graph: RestorationGraph) -> str:
    return str(next(graph.parameters()).dtype).removeprefix("torch.")


def _onnxscript_version() -> str:
    try:
        return version("onnxscript")
    except PackageNotFoundError as error:
        raise ResourceError(
            f"exporting ONNX needs onnxscript, which is not installed: pip install '{ONNXSCRIPT}'"
        ) from error


def _translated(graph: RestorationGraph, part: ComponentName, opset: int) -> Any:
    """A part as an `onnx_ir.Model`."""
    from fr_export.lowering import TRANSLATIONS

    ends = ENDS[part]
    without = phased(graph) if _dtype(graph) == "bfloat16" else nullcontext()
    with _torch_ops(graph), without, _quiet():
        program = torch.onnx.export(
            Part(graph, part).eval(),
            (example(graph, part, 2),),
            dynamo=True,
            opset_version=opset,
            input_names=[ends.takes],
            output_names=list(ends.gives),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=min(BATCH, graph.most))},),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    return program.model


def _described(model: Any, metadata: GraphMetadata) -> Any:
    """With our metadata in place of the exporter's, which names files of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    made = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *made):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(metadata.to_props())
    model.producer_name, model.producer_version = "fr-deploy", metadata.version
    if foreign := {node.domain for node in model.graph.all_nodes()} - {""} or model.functions:
        raise ModelError(f"the export holds operators that are not standard: {foreign}")
    return model


def _write(model: Any, path: Path) -> None:
    import onnx_ir

    data = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    onnx.checker.check_model(data, full_check=True)
    with atomic_write(path) as file:
        file.write(data)


def _write_beside(model: Any, path: Path, data: str) -> None:
    """The weights first, under the name of their hash: a file that is replaced keeps its own until the last moment."""
    import onnx_ir

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".", suffix=".part") as folder:
        written = Path(folder) / path.name
        onnx_ir.save(model, written, external_data=data)
        onnx.checker.check_model(str(written))
        (written.parent / data).replace(path.parent / data)
        written.replace(path)
    for old in path.parent.glob(f"{glob.escape(path.name)}-*.data"):
        if old.name != data:
            old.unlink()


@contextmanager
def _torch_ops(graph: RestorationGraph) -> Generator[None]:
    """torch's own operators for the time of an export: what an exporter knows."""
    layers = [layer for layer in graph.modules() if isinstance(layer, Layer)]
    before, training = [layer.kernels for layer in layers], graph.training
    graph.use_kernels(False).eval()
    try:
        yield
    finally:
        graph.train(training)
        for layer, kernels in zip(layers, before, strict=True):
            layer.kernels = kernels


@contextmanager
def phased(graph: RestorationGraph) -> Generator[None]:
    """No transposed convolution for a while: in bfloat16 TensorRT-RTX 1.7.1 builds none (Myelin infers no type)."""
    stack, layers = graph.unet.upsamplers, list(graph.unet.upsamplers)
    for i, layer in enumerate(layers):
        if isinstance(layer, TransposedUpsample):
            stack[i] = layer.phased()
    try:
        yield
    finally:
        for i, layer in enumerate(layers):
            stack[i] = layer


@contextmanager
def _quiet() -> Generator[None]:
    """Without what torch says of torchvision's absence and of its own old calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            yield
    finally:
        logger.setLevel(level)
