"""What the CPU's Winograd convolutions share: `csrc/winograd.h` (formula and cost: there) seen from Python."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fr_kernels import native

ROWS = 6
"""As in the source: tiles of a panel."""
PANELS, MANY_PANELS = 2, 12
"""Of one block: so few that rows and sums stay in a core's second cache; more where the weights leave the third, since
each block fetches them anew. On two cores of a Zen 3, 128 channels of 64 x 64: 2.9 ms with 2 and 3.3 with 8; 640 of
32 x 32: 53 ms with 3 and 36 with 12."""
FEW_BYTES = 4 << 20
"""Of packed weights that stay in a cache."""


class Form(NamedTuple):
    """One source's transforms, as its own `Form`."""

    source: str
    """Name in `csrc/`."""
    tile: int
    """Outputs of a side."""
    taps: int
    """Of a kernel's side."""
    points: tuple[float, ...]
    """And infinity."""

    @property
    def spots(self) -> int:
        """Products of a tile."""
        return (self.tile + self.taps - 1) ** 2

    def tiles(self, batch: int, height: int, width: int) -> int:
        """Of outputs [batch, height, width]."""
        return batch * -(-height // self.tile) * -(-width // self.tile)


def pack(form: Form, weight: Tensor) -> Tensor:
    """G g G^T of each kernel, computed in float64 and rounded once.

    Args:
        form: whose.
        weight: [P, O, C, k, k] of P phases, k taps a side.

    Returns:
        float32 [P, spots, O / wide, C, wide], the last outputs filled up with zeros; wide: two vectors of the CPU at
        hand, so it is not for another machine.
    """
    phases, outputs, inputs = weight.shape[:3]
    wide = _wide(form.source)
    g = _transform(form)
    spots = torch.einsum("ij,pocjk,lk->piloc", g, weight.detach().double(), g).flatten(1, 2)
    shape = (phases, form.spots, -(-outputs // wide) * wide, inputs)
    packed = spots.new_zeros(shape, dtype=torch.float32)
    packed[:, :, :outputs] = spots
    return packed.unflatten(2, (-1, wide)).transpose(3, 4).contiguous()


def checked(form: Form, packed: Tensor, phases: int, outputs: int, inputs: int) -> Tensor:
    """Of another shape it would be read beyond its end.

    Raises:
        ValueError: it is not what `pack` makes of such a weight on this machine.
    """
    wide = _wide(form.source)
    expected = (phases, form.spots, -(-outputs // wide), inputs, wide)
    if packed.shape != expected or not packed.is_contiguous():
        raise ValueError(
            f"packed is {tuple(packed.shape)}; expected contiguous {expected}, as it is made here"
        )
    return packed


def panels_of(tiles: int, threads: int, packed: Tensor) -> int:
    """Panels of one block, the most with which the busiest thread has least to do."""
    most = PANELS if packed.nbytes <= FEW_BYTES else MANY_PANELS
    panels = -(-tiles // ROWS)

    def busiest(block: int) -> int:
        blocks = -(-panels // block)
        return -(-blocks // threads) * block

    return min(range(most, 0, -1), key=busiest)


@cache
def scratch_of(form: Form, inputs: int, outputs: int, panels: int) -> int:
    """Floats for each thread."""
    return native.call(form.source, "winograd_scratch", inputs, outputs, panels)


@cache
def lanes(source: str) -> int:
    """Floats of a vector, as the source was compiled for the CPU at hand: 16 with AVX-512, 8 with AVX2."""
    return native.call(source, "lanes")


@cache
def _wide(source: str) -> int:
    """Outputs of one product: two vectors."""
    return 2 * lanes(source)


def _transform(form: Form) -> Tensor:
    """G [points, taps]: p has p^j / product of its differences to the others; infinity has the last coefficient."""
    rows: list[list[float]] = []
    for point in form.points:
        factor = 1.0
        for other in form.points:
            factor *= point - other if other != point else 1.0
        rows.append([point**power / factor for power in range(form.taps)])
    last = [0.0] * (form.taps - 1) + [1.0]
    return torch.tensor([*rows, last], dtype=torch.float64)
