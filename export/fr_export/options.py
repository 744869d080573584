"""What an export is to be: options as a person gives them, made whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fr_deploy.errors import UsageError
from fr_deploy.manifest import PARTS, WHOLE, ComponentName, Format, Precision
from fr_export.engine import PRECISIONS
from fr_export.engine_graph import Precision as GraphPrecision
from fr_export.engine_options import BatchRange, EngineOptions
from fr_export.onnx import BATCH

FORMATS: tuple[Format, ...] = ("onnx", "tensorrt", "tensorrt-rtx")
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
ENGINES: dict[Precision, GraphPrecision] = {name: of for of, name in PRECISIONS.items()}
_BY_FORMAT: dict[Format, tuple[Precision, str]] = {
    "onnx": ("fp32", "1:8:16"),
    "tensorrt": ("fp16", "1:4:8"),
    "tensorrt-rtx": ("fp16", "1:4:8"),
}


@dataclass(frozen=True)
class Options:
    """Of one export."""

    format: Format
    precision: Precision
    batches: tuple[BatchRange, ...]
    names: tuple[ComponentName, ...]
    engine: EngineOptions | None
    """None in the format onnx."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return DTYPES[self.precision]


def options_of(
    format: Format,  # noqa: A002
    *,
    precision: Precision | None = None,
    batch: str | None = None,
    buckets: Sequence[int] = (),
    whole: bool = False,
    capabilities: Sequence[str] = (),
    workspace: int | None = None,
    timing_cache: Path | None = None,
) -> Options:
    """Fill in what was not given.

    Args:
        format: "onnx", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16" or, for engines, "bf16"; by default fp32 for ONNX and fp16 for engines.
        batch: "LEAST:BEST:MOST" or one number: one profile. By default 1:4:8, of ONNX 1:8:16.
        buckets: static batches in place of it, for engines; a profile each.
        whole: one graph in place of four.
        capabilities, workspace, timing_cache: as `EngineOptions`.

    Raises:
        UsageError: an option that is unknown, contradicts another, or that the format does not have.
    """
    if format not in FORMATS:
        raise UsageError(f"format is {format!r}; allowed are {', '.join(FORMATS)}")
    chosen, usual = _BY_FORMAT[format]
    precision = precision or chosen
    if precision not in DTYPES:
        raise UsageError(f"precision is {precision!r}; allowed are {', '.join(DTYPES)}")
    if batch is not None and buckets:
        raise UsageError("a range of batches and buckets are given; give --batch or --buckets")
    batches = tuple(BatchRange.of(f"{n}") for n in buckets) or (BatchRange.of(batch or usual),)
    names: tuple[ComponentName, ...] = (WHOLE,) if whole else PARTS
    if format == "onnx":
        _check_onnx(
            precision, bool(buckets), bool(capabilities or workspace or timing_cache), batches[0]
        )
        return Options(format, precision, batches, names, None)
    engine = EngineOptions(
        flavour=format,
        batches=batches,
        precision=ENGINES[precision],
        capabilities=tuple(capabilities),
        workspace=workspace,
        timing_cache=timing_cache,
    )
    return Options(format, precision, batches, names, engine)


def _check_onnx(precision: Precision, buckets: bool, of_engines: bool, batch: BatchRange) -> None:
    if precision == "bf16":
        raise UsageError(
            "onnxruntime's CPU kernels take no bfloat16; choose --precision fp32 or fp16, or --format tensorrt or "
            "tensorrt-rtx"
        )
    if buckets:
        raise UsageError(
            "an ONNX file takes any batch; give buckets with --format tensorrt or tensorrt-rtx"
        )
    if of_engines:
        raise UsageError(
            "compute capability, workspace and timing cache are of engines; leave them out, or choose "
            "--format tensorrt or tensorrt-rtx"
        )
    if batch.most > BATCH:
        raise UsageError(f"batches are {batch}; an ONNX file is written for at most {BATCH}")
