"""What runs a graph on one batch; everything above knows only this."""

from typing import Protocol

import torch
from torch import Tensor

from fr_deploy.errors import ResourceError, UsageError


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


def require_faces(
    faces: Tensor, size: int, limit: int | None = None, *, closed: bool = False
) -> None:
    """Refuse what a backend of exported files could not run.

    Args:
        faces: what it was given.
        size: side of a face in pixels.
        limit: the largest batch it may be given; None: any.
        closed: it was closed.

    Raises:
        UsageError: another shape, dtype or device, too many faces, or the backend is closed.
    """
    if faces.dtype != torch.uint8 or faces.shape[1:] != (size, size, 3) or not len(faces):
        raise UsageError(
            f"faces are {faces.dtype} {list(faces.shape)}; "
            f"expected uint8 [B, {size}, {size}, 3] with B at least 1"
        )
    if faces.device.type != "cpu":
        raise UsageError(f"faces are on {faces.device}; call with faces.cpu()")
    if limit is not None and len(faces) > limit:
        raise UsageError(f"{len(faces)} faces at once; allowed are {limit}: split them")
    if closed:
        raise UsageError("the backend is closed; make another one")
