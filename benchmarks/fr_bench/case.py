"""One case of `fr-deploy bench kernels`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Any, ...]
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    `ours(*inputs, impl=...)` and every peer return what is compared; `eager` also runs in float64, as the oracle.
    A result of several tensors is a tuple, and each is held to the budget.
    """

    op: str
    shape: str
    inputs: Callable[[torch.device, torch.dtype], Inputs]
    ours: Callable[..., Tensor | Outputs]
    eager: Callable[..., Tensor | Outputs]
    peers: Mapping[str, Callable[..., Tensor | Outputs]] = field(default_factory=dict[str, Any])
    compared: Callable[..., Tensor] = lambda output, *_: output
    """Of (output, *inputs): what must be near; the output itself unless it says otherwise."""
    backward: str = ""
    """Name of the backward op where `ours` runs it too, so that its launches count."""
    dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32")
    compiled: str = "triton"
    """What `impl` calls its GPU kernels; "reference" where they are torch's."""
    native: bool = False
    """Whether the op has a form for the CPU, in float32."""
    moved: Callable[..., int] | None = None
    """Bytes read and written, of the inputs, where that is not each input and output once."""
    launched: Callable[..., Inputs] = lambda *inputs: inputs
    """Of the inputs: the op's arguments, as far as its number of launches depends on them."""
    captured: bool = True
    """Timed as a CUDA graph; else call by call, with what the host does."""
    on_cpu: bool = False
    """A small shape that a CPU checks in seconds; the others are for a GPU."""


def random(*shape: int) -> Callable[[torch.device, torch.dtype], Tensor]:
    """Normal numbers of a shape, made on the device and rounded."""
    return lambda device, dtype: torch.randn(shape, device=device).to(dtype)
