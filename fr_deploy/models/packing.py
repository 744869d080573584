"""Weights as a CPU's kernels read them."""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from fr_deploy.models.fold import phases_of_transposed
from fr_kernels import pack_upsample_conv

P = TypeVar("P")


class Packed(Generic[P]):
    """What a CPU's kernel reads in place of a weight, made anew when that was written or moved."""

    def __init__(self, pack: Callable[[Tensor], P]) -> None:
        self._pack = pack
        self._made: tuple[tuple[int, int], P] | None = None

    def of(self, weight: Tensor) -> P:
        """`pack(weight)`."""
        state = weight.data_ptr(), weight._version
        if self._made is None or self._made[0] != state:
            self._made = state, self._pack(weight)
        return self._made[1]


def pack_transposed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`TransposedUpsample`'s weight as `fr_kernels.upsample_conv` takes it, and packed."""
    phases = phases_of_transposed(weight)
    return phases, pack_upsample_conv(phases)
