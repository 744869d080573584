"""Launch settings, and the one door through which every Triton kernel is launched."""

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Settings:
    """How one kernel is launched: tile sizes (constexpr arguments of the kernel), warps, pipeline stages."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 2

    def arguments(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Specialization:
    """One compiled form of a kernel, for compiling ahead of time as the launcher would at run time."""

    name: str
    """Unique within the op: dtype, sizes, tile."""
    kernel: Any
    """The `triton.jit` function."""
    signature: Mapping[str, str]
    """Type of each run-time argument: "*fp16", "*fp32", "*i32", "i32", "i64", "fp32"."""
    constants: Mapping[str, Any]
    """Value of each constexpr argument, tile sizes included."""
    settings: Settings
    divisible: tuple[str, ...] = ()
    """Integer arguments divisible by 16 at the named sizes; pointers always are."""
    matrix: bool = False
    """Whether it must contain matrix instructions (a dot of 16-bit inputs)."""


def tuned(op: str, key: str, default: Settings, device: torch.device) -> Settings:
    """The settings measured best on this GPU, from `configs/<gpu>.json`; nothing is measured yet, so none exists.

    Args:
        op: the op's name.
        key: what the best settings depend on, such as "d=64 fp16".
        default: used where nothing was measured.
        device: a CPU device (the interpreter) always gets `default`.
    """
    if device.type != "cuda":
        return default
    entry = _measured(gpu_file_name(torch.cuda.get_device_name(device))).get(op, {}).get(key)
    return default if entry is None else Settings(**entry)


def gpu_file_name(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def _measured(gpu: str) -> dict[str, Any]:
    path = CONFIGS / f"{gpu}.json"
    return json.loads(path.read_text())["settings"] if path.exists() else {}


_counts: list[list[str]] = []
_running = False


@contextmanager
def launches_made() -> Generator[list[str]]:
    """Collect the name of each Triton kernel launched inside the block."""
    names: list[str] = []
    _counts.append(names)
    try:
        yield names
    finally:
        _counts.remove(names)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, settings: Settings, **meta: Any) -> None:
    """Run `kernel[grid](*args, **meta)` with the settings; does nothing on an empty grid."""
    if 0 in grid:
        return
    global _running
    for names in _counts:
        names.append(kernel.__name__)
    _running = True
    try:
        kernel[grid](*args, **meta, **settings.arguments())
    finally:
        _running = False


def launching() -> bool:
    """Whether a kernel is being launched now: what torch does meanwhile is the interpreter's work, not the op's."""
    return _running
