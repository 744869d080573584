"""What runs a graph on one batch; everything above knows only this."""

from typing import Protocol

from torch import Tensor

from fr_deploy.errors import ResourceError


class OutOfMemoryError(ResourceError):
    """A batch does not fit into the memory of its device; a smaller one may."""


class Backend(Protocol):
    """One graph on one device. Loaded when made; `close` gives its memory back."""

    name: str
    """As `--backend` calls it."""
    device: str
    """As shown to the user: "cpu", "cuda:0 (NVIDIA H200)"."""
    dtype: str
    """What it computes in: "fp32", "fp16" or "bf16"."""
    size: int
    """Side of a face in pixels."""
    limit: int
    """The largest batch it may be given."""

    def run(self, faces: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] RGB on the CPU, 1 <= B <= `limit`, to the same.

        Raises:
            OutOfMemoryError: this batch does not fit.
        """
        ...

    def close(self) -> None:
        """Free its memory; not to be run again."""
        ...
