"""Every call of TensorRT that builds an engine, for TensorRT 10 and 11 and TensorRT-RTX.

tests/test_export_engine_api.py compares each name used here with the three interfaces.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fr_deploy.atomic import atomic_write

Emit = Callable[[Mapping[str, Any]], None]
LOUD = ("WARNING", "ERROR", "INTERNAL_ERROR")


@dataclass(frozen=True)
class Job:
    """What the parent asks for; travels as JSON."""

    module: str
    """`tensorrt` or `tensorrt_rtx`."""
    onnx: str
    operators: tuple[str, ...]
    """All that the graph uses; asked one by one when it cannot be read."""
    batches: tuple[tuple[int, int, int], ...]
    capabilities: tuple[str, ...]
    workspace: int | None
    timing_cache: str | None
    """A folder."""
    gpu: str
    """The GPU's part of the timing cache's name."""
    inspect: bool
    """Load the engine and describe its layers: on the GPU it was built for only."""


class RefusedError(Exception):
    """TensorRT does not take the graph or the job."""


class UnreadableError(RefusedError):
    """It cannot read the graph; the text says where, and TensorRT's log would say it again."""


def build(trt: Any, job: Job, emit: Emit, plan_file: BinaryIO) -> dict[str, Any]:
    """Build, write the engine to `plan_file` and say what it is.

    Raises:
        RefusedError: with what TensorRT said; more is in the log lines emitted.
    """
    logger = _logger(trt, emit)
    builder = trt.Builder(logger)
    # Ignored since 11, where every network is strongly typed; in 10 it is what makes one.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, job)
    _let_attention_decompose(trt, network)
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, emit)
    _configure(trt, config, job)
    _add_profiles(builder, network, config, job)
    times = _load_times(trt, config, job, emit)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RefusedError("the build failed")
    data = memoryview(plan)
    plan_file.write(data)
    if times is not None:
        _save_times(config, times)
    layers = _inspected(trt, logger, data) if job.inspect else None
    return {
        "version": trt.__version__,
        "layers": network.num_layers,
        "bytes": data.nbytes,
        "sha256": hashlib.sha256(data).hexdigest(),
        "information": layers,
    }


def _parse(parser: Any, job: Job) -> None:
    if parser.parse_from_file(job.onnx):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [f"node {e.node()} {e.node_name()!r} ({e.node_operator()}): {e.desc()}" for e in errors]
    unknown = [name for name in job.operators if not parser.supports_operator(name)]
    if unknown:
        lines.append(f"it has no operator {', '.join(unknown)}")
    raise UnreadableError("\n".join(lines) or "the ONNX file cannot be read")


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Where no fused kernel fits (float32, heads of 8 or 512 channels in TensorRT-RTX 1.7), the build fails without."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # a parser's layers come as ILayer
            layer.attention.decomposable = True


def _configure(trt: Any, config: Any, job: Job) -> None:
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    if job.inspect:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.capabilities:
        config.num_compute_capabilities = len(job.capabilities)
        known = trt.ComputeCapability
        by_name = {
            "7.5": known.SM75,
            "8.0": known.SM80,
            "8.6": known.SM86,
            "8.9": known.SM89,
            "12.0": known.SM120,
            "12.1": known.SM121,
        }
        for index, name in enumerate(job.capabilities):
            if not config.set_compute_capability(by_name[name], index):
                raise RefusedError(f"compute capability {name} is refused")


def _add_profiles(builder: Any, network: Any, config: Any, job: Job) -> None:
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [(t.name, tuple(t.shape)) for t in tensors if -1 in tuple(t.shape)]
    for batches in job.batches if dynamic else ():
        profile = builder.create_optimization_profile()
        for name, shape in dynamic:
            profile.set_shape(name, *((batch, *shape[1:]) for batch in batches))
        if config.add_optimization_profile(profile) < 0:
            raise RefusedError(f"batches {batches} of {dynamic} are refused")


def _load_times(trt: Any, config: Any, job: Job, emit: Emit) -> Path | None:
    """Give the kernel times of earlier builds; where they are to be kept."""
    if job.timing_cache is None:
        return None
    path = Path(job.timing_cache) / f"{trt.__version__}-{job.gpu}.timing"
    kept = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(kept), False):
        emit(
            {
                "event": "log",
                "severity": "WARNING",
                "text": f"{path} does not fit; times are measured anew",
            }
        )
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return path


def _save_times(config: Any, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(memoryview(config.get_timing_cache().serialize()))


def _inspected(trt: Any, logger: Any, plan: memoryview) -> str:
    """The engine's layers as JSON."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise RefusedError("the engine was built and cannot be loaded")
    inspector = engine.create_engine_inspector()
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def _logger(trt: Any, emit: Emit) -> Any:
    class Logger(trt.ILogger):
        """Warnings and worse."""

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in LOUD:
                emit({"event": "log", "severity": severity.name, "text": msg.strip()})

    return Logger()


def _monitor(trt: Any, emit: Emit) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Its phases nest, and several may run at once."""

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            emit(
                {"event": "start", "phase": phase_name, "parent": parent_phase, "steps": num_steps}
            )

        def step_complete(self, phase_name: str, step: int) -> bool:
            emit({"event": "step", "phase": phase_name, "step": step})
            return True

        def phase_finish(self, phase_name: str) -> None:
            emit({"event": "finish", "phase": phase_name})

    return Monitor()
