"""Batches of any length through a backend: in buckets, and in smaller ones where memory does not suffice."""

import logging

import torch
from torch import Tensor

from fr_deploy.errors import ResourceError, UsageError
from fr_deploy.runtime.backend import Backend, OutOfMemoryError

BUCKETS = (1, 2, 4, 8, 16, 32)
_log = logging.getLogger("fr_deploy")


class Runner:
    """Splits N faces into buckets: the sizes that a backend was compiled, captured or measured for.

    The largest bucket that is full comes first, so nothing is padded: 13 faces are 8 + 4 + 1. The graph is bound by
    its products from one face on (predicted: 6.7 ms a face alone, 6.1 in a batch of 8 on an H200), so two small
    batches cost less than one padded one. With `fixed`, every batch is padded to that one bucket instead.
    """

    def __init__(
        self, backend: Backend, *, batch: int = BUCKETS[-1], fixed: int | None = None
    ) -> None:
        """Wrap a backend.

        Args:
            backend: what runs each batch.
            batch: faces a batch at most.
            fixed: the only bucket, so that a face's result does not depend, not in one bit, on how many others come
                with it.

        Raises:
            UsageError: `batch` or `fixed` is not positive, or above the backend's limit.
        """
        for name, value in (("batch", batch), ("fixed bucket", fixed)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if fixed is not None and fixed > backend.limit:
            raise UsageError(
                f"fixed bucket is {fixed}; {backend.name} takes up to {backend.limit} faces"
            )
        self.backend, self.fixed = backend, fixed
        self.ceiling = min(batch, backend.limit)
        """Faces a batch at most; halved when memory did not suffice, and never raised again."""

    def __call__(self, faces: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] on the CPU -> the same; N may be 0.

        Raises:
            ResourceError: not even one face, or one fixed bucket, fits into memory.
        """
        out = torch.empty_like(faces)
        done = 0
        while done < len(faces):
            batch = faces[done : done + self.bucket(len(faces) - done)]
            try:
                out[done : done + len(batch)] = self._run(batch)
            except OutOfMemoryError as error:
                self._lower(len(batch), error)
                continue
            done += len(batch)
        return out

    def bucket(self, left: int) -> int:
        """How many of the `left` faces the next batch takes."""
        if self.fixed is not None:
            return min(left, self.fixed)
        return max(b for b in BUCKETS if b <= min(left, self.ceiling))

    def _run(self, batch: Tensor) -> Tensor:
        if self.fixed is None or len(batch) == self.fixed:
            return self.backend.run(batch)
        padding = batch[-1:].expand(self.fixed - len(batch), -1, -1, -1)
        return self.backend.run(torch.cat([batch, padding]))[: len(batch)]

    def _lower(self, batch: int, error: OutOfMemoryError) -> None:
        if self.fixed is not None:
            raise ResourceError(
                f"{error} A fixed bucket is never split; choose a smaller one: --fixed-bucket {self.fixed // 2 or 1}"
            ) from error
        if batch == 1:
            raise ResourceError(
                f"{error} Not even one face fits; free memory, or use --device cpu"
            ) from error
        self.ceiling = batch // 2
        _log.warning("%s Going on with batches of %d", error, self.ceiling)
