"""Launch settings measured on a GPU: one JSON file per GPU, written by `python -m fr_kernels.tune`, read at a launch.

    {"version": 1, "gpu": "NVIDIA H200", "ops": {op: {date, torch, triton, driver, commit, dirty,
     "entries": {key: {"blocks": {...}, "num_warps": 4, "num_stages": 3, "median_us": 12.3, "default_us": 14.0}}}}}

A GPU without a file, and a key without an entry, get the op's written default: logged once (logger `fr_kernels`,
level INFO). A file that does not fit the code is refused.
"""

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fr_kernels.dispatch import say_once
from fr_kernels.launch import Settings, Space, triton_ops

CONFIGS = Path(__file__).parent / "configs"
VERSION = 1
TUNE = "python -m fr_kernels.tune"


class BadConfigError(ValueError):
    """A file of measured settings does not fit this version of the code."""


@dataclass(frozen=True)
class Entry:
    """What was chosen for one key of one op."""

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int
    median_us: float
    """Of the whole launcher, cold L2, in the run that compared it with the default."""
    default_us: float
    """Of the written default, in the same run."""

    def settings(self) -> Settings:
        """Without the times."""
        return Settings(self.blocks, self.num_warps, self.num_stages)


@dataclass(frozen=True)
class Origin:
    """When and with what an op's entries were measured."""

    date: str
    torch: str
    triton: str
    driver: str
    commit: str
    """Empty outside a git checkout."""
    dirty: bool


class Asked(NamedTuple):
    """What a launcher offered for one key."""

    default: Settings
    space: Space


_trials: list[tuple[Mapping[str, Settings], dict[str, Asked]]] = []


@contextmanager
def trying(chosen: Mapping[str, Settings]) -> Generator[dict[str, Asked]]:
    """Inside, `tuned` gives what `chosen` has for a key and else the default; yields what it was asked, by key."""
    asked: dict[str, Asked] = {}
    _trials.append((chosen, asked))
    try:
        yield asked
    finally:
        _trials.pop()


def tuned(op: str, key: str, default: Settings, space: Space, device: torch.device) -> Settings:
    """The settings measured best on this GPU, else `default`.

    Args:
        op: the op's name.
        key: what the best settings depend on, kernel first: "dq d=64 16-bit".
        default: the written ones.
        space: what `fr_kernels.tune` may vary of them.
        device: a CPU device (the interpreter) always gets `default`.

    Raises:
        BadConfigError: the GPU's file does not fit the code.
    """
    if _trials:
        chosen, asked = _trials[-1]
        asked[key] = Asked(default, space)
        return chosen.get(key, default)
    if device.type != "cuda":
        return default
    gpu, ops = _measured_on(device)
    if not ops:
        say_once(
            f"no launch settings were measured on {gpu}: the written ones run; {TUNE} measures"
        )
        return default
    found = ops.get(op, {}).get(key)
    if found is None:
        say_once(f"{op}: nothing was measured on {gpu} for {key!r}: the written settings run")
        return default
    if found.blocks.keys() != default.blocks.keys():
        raise BadConfigError(
            f"{gpu_file_name(gpu)}: {op}, {key!r} has tiles {sorted(found.blocks)}; the kernel takes "
            f"{sorted(default.blocks)}. Measure again: {TUNE} --op {op}"
        )
    return found.settings()


def precision(dtype: torch.dtype) -> str:
    """What a key says of a dtype: float16 and bfloat16 cost the same."""
    return f"{8 * dtype.itemsize}-bit"


def gpu_file_name(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200.json"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"


def read(path: Path) -> dict[str, dict[str, Entry]]:
    """The entries of a file by op and key; empty where there is no file.

    Raises:
        BadConfigError: no JSON, another version, an op that does not exist, or fields that do not fit.
    """
    return {op: entries for op, (_, entries) in _read(path).items()}


def write(path: Path, gpu: str, op: str, origin: Origin, entries: Mapping[str, Entry]) -> None:
    """Replace one op's entries, keep the others'.

    Raises:
        BadConfigError: as `read`, for the file that is there.
    """
    ops = {**_read(path), op: (origin, dict(entries))}
    document = {
        "version": VERSION,
        "gpu": gpu,
        "ops": {
            name: {**asdict(origin), "entries": {key: asdict(e) for key, e in entries.items()}}
            for name, (origin, entries) in sorted(ops.items())
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


_Ops = dict[str, tuple[Origin, dict[str, Entry]]]


@cache
def _measured_on(device: torch.device) -> tuple[str, dict[str, dict[str, Entry]]]:
    """The GPU's name and its entries."""
    gpu = torch.cuda.get_device_name(device)
    return gpu, read(CONFIGS / gpu_file_name(gpu))


def _read(path: Path) -> _Ops:
    if not path.exists():
        return {}
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']!r}; this code reads {VERSION}")
        return {op: _op(op, **fields) for op, fields in document["ops"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadConfigError(
            f"{path}: {error}. Delete the file and measure again: {TUNE}"
        ) from error


def _op(op: str, *, entries: dict[str, Any], **origin: Any) -> tuple[Origin, dict[str, Entry]]:
    if op not in triton_ops():
        raise ValueError(f"no op {op!r}; there are: {', '.join(triton_ops())}")
    made = {key: Entry(**fields) for key, fields in entries.items()}
    for key, entry in made.items():
        if not all(_counts(size) for size in entry.settings().arguments().values()):
            raise ValueError(f"{op}, {key!r}: {entry.settings()}; expected whole numbers > 0")
    return Origin(**origin), made


def _counts(size: object) -> bool:
    return isinstance(size, int) and size > 0
