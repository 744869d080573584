"""What an engine is to be built for, and what the two flavours of TensorRT allow."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from fr_deploy.errors import ResourceError, UsageError
from fr_export.engine_graph import Precision

Flavour = Literal["tensorrt", "tensorrt-rtx"]
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX 1.7 builds for by name; without a name the engine is portable: 8.0, 8.6, 8.9, 12.0 and later."""
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL: dict[Flavour, str] = {
    "tensorrt": "pip install 'fr-deploy[trt]'  (it needs an NVIDIA GPU and a driver for CUDA 13)",
    "tensorrt-rtx": "pip install 'fr-deploy[rtx]'  (100 MB; it needs no GPU)",
}
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class BatchRange:
    """Batches one optimization profile takes, and the one its kernels are chosen for."""

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise UsageError(
                f"batches are {self.least}:{self.best}:{self.most}; allowed are 1 <= least <= best <= most, as in 1:4:8"
            )

    @staticmethod
    def of(text: str) -> "BatchRange":
        """Of `least:best:most`, or of one number, which is a static batch.

        Raises:
            UsageError: something else.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(
                f"batches are {text!r}; allowed are LEAST:BEST:MOST or one number, as in 1:4:8"
            )
        least, best, most = map(int, parts * (3 // len(parts)))
        return BatchRange(least, best, most)

    def __str__(self) -> str:
        return (
            str(self.best) if self.least == self.most else f"{self.least}:{self.best}:{self.most}"
        )


@dataclass(frozen=True)
class EngineOptions:
    """Of one engine. There is no precision to choose: the ONNX graph carries every dtype.

    Raises:
        UsageError: an option the flavour does not have.
    """

    flavour: Flavour = "tensorrt-rtx"
    batches: tuple[BatchRange, ...] = (BatchRange(1, 4, 8),)
    """One profile each, in one engine with one copy of the weights; static ones, such as 1, 4 and 8, too."""
    precision: Precision = "float16"
    """What most of the graph's multiplications must be in already; else the build is refused."""
    capabilities: tuple[str, ...] = ()
    """TensorRT-RTX: GPUs by compute capability, none for a portable engine. TensorRT builds for the GPU at hand."""
    workspace: int | None = None
    """Most bytes of scratch memory a layer may take on the GPU; TensorRT's own default is all there is."""
    timing_cache: Path | None = None
    """TensorRT: a folder of measured kernel times, one file a version and GPU. TensorRT-RTX measures nothing."""

    def __post_init__(self) -> None:
        if self.flavour not in MODULES:
            raise UsageError(
                f"the flavour is {self.flavour!r}; allowed are {' and '.join(MODULES)}"
            )
        if self.precision not in get_args(Precision):
            raise UsageError(
                f"precision is {self.precision!r}; allowed are {', '.join(get_args(Precision))}"
            )
        if not self.batches:
            raise UsageError("no batches are given; give at least one range, as in 1:4:8")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace is {self.workspace} bytes; allowed are 1 and more")
        (self._check_rtx if self.flavour == "tensorrt-rtx" else self._check_full)()

    def _check_rtx(self) -> None:
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise UsageError(
                    f"TensorRT-RTX builds for no compute capability {capability!r}; allowed are "
                    f"{', '.join(CAPABILITIES)}, or none for a portable engine. For an H100, H200 or B200 take full "
                    "TensorRT"
                )
        if self.timing_cache is not None:
            raise UsageError(
                "TensorRT-RTX has no timing cache: it times nothing when it builds; leave it out"
            )

    def _check_full(self) -> None:
        if self.capabilities:
            raise UsageError(
                f"TensorRT builds for the GPU it runs on, not for {', '.join(self.capabilities)}; leave compute "
                "capabilities out, or take tensorrt-rtx"
            )


def installed(flavour: Flavour) -> str:
    """Which installation of a flavour's package this is: its place and its age. (Loading it takes 234 MB.)"""
    spec = find_spec(MODULES[flavour])
    place = Path(spec.origin) if spec and spec.origin else Path()
    return f"{place} {place.stat().st_mtime_ns}"


def require_installed(flavour: Flavour) -> None:
    """Refuse early, by name.

    Raises:
        ResourceError: the flavour's package is not installed.
    """
    if find_spec(MODULES[flavour]) is None:
        raise ResourceError(
            f"{TITLES[flavour]} is not installed (no module {MODULES[flavour]}): {INSTALL[flavour]}"
        )
