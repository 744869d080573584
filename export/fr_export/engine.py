"""Engines of TensorRT and TensorRT-RTX from ONNX files: one builder for both, for TensorRT 10 and 11."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ModelError, ResourceError
from fr_deploy.manifest import Precision
from fr_export.engine_calls import Job
from fr_export.engine_graph import EngineGraph, layers_of, read_graph
from fr_export.engine_graph import Precision as GraphPrecision
from fr_export.engine_options import MODULES, TITLES, EngineOptions, require_installed
from fr_export.engine_process import Step, run_job

PRECISIONS: dict[GraphPrecision, Precision] = {
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
}
"""How torch and ONNX name them, and how this program's options and manifests do."""


@dataclass(frozen=True)
class EngineBuilt:
    """An engine and how it came to be."""

    path: Path
    bytes: int
    sha256: str
    seconds: float
    """From the start of the build's process to its end."""
    peak_bytes: int
    """Most main memory that process had; not the GPU's."""
    flavour: str
    version: str
    """Of TensorRT; no other version loads the engine."""
    capabilities: tuple[str, ...]
    """Compute capabilities it runs on; none: TensorRT-RTX's portable engine, 8.0 and later."""
    layers: int
    """Of the network TensorRT read, before fusion."""
    half: float
    """Share of the graph's multiplications in half precision."""
    half_layers: float | None
    """Share of the engine's own layers that write half precision; None where no inspector could be asked."""


def build_engine(
    onnx: Path,
    output: Path,
    options: EngineOptions,
    *,
    progress: Callable[[Step], None] | None = None,
) -> EngineBuilt:
    """Build an engine in a process of its own. The file appears whole or not at all.

    Args:
        onnx: standard operators, only the batch dynamic; weights inside or beside it.
        output: replaced if it is there.
        options: what to build for.
        progress: called with each step TensorRT reports.

    Raises:
        UsageError: batches the graph does not have.
        ModelError: TensorRT refuses the graph or crashes on it, or its precision is not the one asked for.
        ResourceError: the package or, for `tensorrt`, a GPU is missing; out of memory; the disk is full.
        ImageError: reason `unwritable`.
    """
    require_installed(options.flavour)
    graph = read_graph(onnx)
    require_precision(onnx, graph, options)
    require_batches(onnx, graph, options)
    gpu, capabilities = ("", options.capabilities) if options.flavour == "tensorrt-rtx" else _gpu()
    job = _job(onnx, graph, options, gpu)
    started = time.perf_counter()
    with atomic_write(output) as file:
        built = run_job(job, file.fileno(), f"{TITLES[options.flavour]}: {onnx}", progress)
        half_layers = None
        if built["information"] is not None:
            half_layers = half_of_layers(built["information"])
            _require_half_layers(output, half_layers, options)
    return EngineBuilt(
        path=output,
        bytes=built["bytes"],
        sha256=built["sha256"],
        seconds=time.perf_counter() - started,
        peak_bytes=built["peak"],
        flavour=options.flavour,
        version=built["version"],
        capabilities=capabilities,
        layers=built["layers"],
        half=graph.half,
        half_layers=half_layers,
    )


def require_precision(onnx: Path, graph: EngineGraph, options: EngineOptions) -> None:
    """Refuse a graph that is in another precision than asked for: no builder flag could mend it.

    Raises:
        ModelError: most multiplications are in another precision.
    """
    if graph.precision != options.precision:
        raise ModelError(
            f"{onnx} has {graph.half:.0%} of its multiplications in half precision, most in {graph.precision}, and "
            f"{options.precision} is asked for; the graph decides, so export it so: fr-deploy export MODEL -o DIR "
            f"--precision {PRECISIONS[options.precision]}"
        )


def require_batches(onnx: Path, graph: EngineGraph, options: EngineOptions) -> None:
    """Refuse batches the graph does not have.

    Raises:
        ModelError: the graph has one fixed batch, and another is asked for.
    """
    fixed = {shape[0] for shape in graph.inputs.values() if shape}
    if graph.dynamic or all((b.least, b.most) == (n, n) for b in options.batches for n in fixed):
        return
    raise ModelError(
        f"{onnx} has the fixed batch {fixed}, and {', '.join(map(str, options.batches))} is asked for; "
        "fr-deploy export writes a dynamic one"
    )


def half_of_layers(information: str) -> float:
    """The share of an engine's layers whose output is in half precision.

    Args:
        information: the JSON of TensorRT's engine inspector, built with detailed verbosity.

    Raises:
        ModelError: there is no layer, or the JSON has another form.
    """
    formats = [outputs for _, outputs in layers_of(information)]
    if not formats:
        raise ModelError("TensorRT describes an engine without layers")
    half = re.compile(r"\b(FP16|BF16|Half|BFloat16)\b", re.IGNORECASE)
    return sum(any(half.search(f) for f in outputs) for outputs in formats) / len(formats)


def _require_half_layers(output: Path, half_layers: float, options: EngineOptions) -> None:
    if options.precision != "float32" and half_layers == 0:
        raise ModelError(
            f"no layer of the engine is in half precision, though the graph is; {output} was not written. "
            "Another version of TensorRT may build it: pip install --upgrade 'fr-deploy[trt]'"
        )


def _job(onnx: Path, graph: EngineGraph, options: EngineOptions, gpu: str) -> Job:
    return Job(
        module=MODULES[options.flavour],
        onnx=str(onnx.resolve()),
        operators=graph.operators,
        batches=tuple((b.least, b.best, b.most) for b in options.batches),
        capabilities=options.capabilities,
        workspace=options.workspace,
        timing_cache=None if options.timing_cache is None else str(options.timing_cache.resolve()),
        gpu=gpu,
        inspect=options.flavour == "tensorrt",
    )


def _gpu() -> tuple[str, tuple[str, ...]]:
    """The GPU that TensorRT builds for: its name in a file's, its compute capability."""
    import torch

    if not torch.cuda.is_available():
        raise ResourceError(
            "TensorRT builds on the GPU the engine is for, and torch sees none; fr-deploy doctor says why. "
            "TensorRT-RTX builds without one: choose the flavour tensorrt-rtx"
        )
    properties = torch.cuda.get_device_properties(0)
    name = re.sub(r"[^A-Za-z0-9]+", "-", properties.name).strip("-")
    return f"{name}-sm{properties.major}{properties.minor}", (
        f"{properties.major}.{properties.minor}",
    )
