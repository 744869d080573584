"""What a build will take, before it is made."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from fr_deploy.errors import ResourceError
from fr_export.engine_graph import EngineGraph
from fr_export.engine_options import EngineOptions

PROFILE_BYTES, NODE_BYTES = 2_000_000, 10_000
"""What an engine of TensorRT-RTX 1.7 has beside its weights, a profile. Builds (docs/engines.md) of `lafr-toy`,
`lafr-mini`, `lafr-sd21` and its parts, 119 to 2542 nodes, 1 to 1865 MB of weights, one and three profiles, were 8 %
smaller to 1 % larger than this."""
BASE_MEMORY, MEMORY_PER_BYTE, MEMORY_PER_PROFILE = 500_000_000, 3.5, 0.3
"""Peak memory of those builds, at most: they took 51 to 95 % of it (`lafr-sd21`'s UNet 92 %: 5.9 GB). The last two are
per byte of the weights, the last also per profile beyond one."""
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class EngineEstimate:
    """Bytes, all of them."""

    parameters: int
    engine: int
    """About."""
    peak: int | None
    """Main memory the build takes at most; None for `tensorrt`, which nobody has measured yet."""
    memory: int
    """Main memory that is free for it."""
    disk: int
    """Free where the engine goes."""

    @property
    def fits(self) -> bool:
        """As far as is known."""
        return self.engine <= self.disk and (self.peak is None or self.peak <= self.memory)

    def __str__(self) -> str:
        peak = (
            "unknown memory (never measured)"
            if self.peak is None
            else f"up to {self.peak / 1e9:.1f} GB"
        )
        return (
            f"{self.parameters / 1e6:.1f} MB of weights; an engine of about {self.engine / 1e6:.0f} MB, "
            f"{self.disk / 1e9:.1f} GB of disk are free; the build takes {peak}, {self.memory / 1e9:.1f} GB are free"
        )


def estimate_engine(graph: EngineGraph, output: Path, options: EngineOptions) -> EngineEstimate:
    """What building a graph will take; nothing is built.

    Args:
        graph: of `read_graph`.
        output: where the engine is to go.
        options: what to build for.

    Raises:
        ResourceError: the machine does not say how much memory is free.
    """
    profiles, beside = len(options.batches), PROFILE_BYTES + NODE_BYTES * graph.nodes
    copies = MEMORY_PER_BYTE + MEMORY_PER_PROFILE * (profiles - 1)
    rtx = options.flavour == "tensorrt-rtx"
    folder = next(parent for parent in output.resolve().parents if parent.is_dir())
    return EngineEstimate(
        parameters=graph.parameters,
        engine=graph.parameters + profiles * beside,
        peak=int(BASE_MEMORY + copies * graph.parameters) if rtx else None,
        memory=free_memory(),
        disk=shutil.disk_usage(folder).free,
    )


def require_room(estimate: EngineEstimate) -> None:
    """Refuse a build that has no room.

    Raises:
        ResourceError: memory or disk would not do.
    """
    if not estimate.fits:
        raise ResourceError(
            f"the build does not fit: {estimate}. Free some, or build on a larger machine"
        )


def free_memory() -> int:
    """Bytes a new process can take: what the machine has free, or what is left of the container's limit (cgroup v2).

    Raises:
        ResourceError: the kernel does not say.
    """
    try:
        text = _MEMINFO.read_text()
        free = int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError) as error:
        raise ResourceError(f"{_MEMINFO} does not say how much memory is free: {error}") from error
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text()) + _reclaimable()))
    return free


def _reclaimable() -> int:
    """Of the container's memory, what only caches files."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(v) for k, v in map(str.split, lines) if k in ("active_file", "inactive_file"))
