"""What a kernel is launched with, and the one door through which every Triton kernel is launched."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Space = Mapping[str, tuple[int, int]]
"""Which of a kernel's settings may be varied, and the least and the most value of each: tile sizes by their names,
`num_warps`, `num_stages`."""


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
    principal: bool = False
    """A main form of its kernel: compiled in bfloat16 too, and by the oldest Triton that is allowed."""


def all_outputs(outputs: Sequence[Tensor], *_: Any) -> Sequence[Tensor]:
    """What is compared of a launcher's outputs where it is the outputs themselves."""
    return outputs


@dataclass(frozen=True)
class Tunable:
    """A launcher at one shape; `fr_kernels.tune` measures the settings that it asks `fr_kernels.measured.tuned` for."""

    name: str
    inputs: Callable[[torch.device], tuple[Any, ...]]
    """Random ones, on a device."""
    run: Callable[..., Sequence[Tensor]]
    """The launcher, called with the inputs."""
    exact: Callable[..., Sequence[Tensor]]
    """The reference, called with the inputs in float64: the same outputs."""
    compared: Callable[..., Sequence[Tensor]] = all_outputs
    """Of (outputs, *inputs): what must agree, floating."""


def triton_ops() -> list[str]:
    """Ops with a `triton_impl.py`, sorted."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/triton_impl.py"))


class Launched(NamedTuple):
    """One launch that was made."""

    name: str
    """Of the kernel."""
    compiled: Any
    """Triton's compiled kernel; None under the interpreter."""


_observers: list[list[Launched]] = []
_running = False


@contextmanager
def launches_made() -> Generator[list[Launched]]:
    """Collect the Triton kernels launched inside the block."""
    made: list[Launched] = []
    _observers.append(made)
    try:
        yield made
    finally:
        _observers.pop()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, settings: Settings, **meta: Any) -> None:
    """Run `kernel[grid](*args, **meta)` with the settings; does nothing on an empty grid."""
    if 0 in grid:
        return
    global _running
    _running = True
    try:
        compiled = kernel[grid](*args, **meta, **settings.arguments())
    finally:
        _running = False
    for made in _observers:
        made.append(Launched(kernel.__name__, compiled))


def launching() -> bool:
    """Whether a kernel is being launched now: what torch does meanwhile is the interpreter's work, not the op's."""
    return _running
