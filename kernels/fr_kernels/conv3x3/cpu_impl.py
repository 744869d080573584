"""The 3x3 convolution on a CPU: `csrc/conv3x3.cpp`, Winograd's F(4x4, 3x3) in float32 (formula and cost: there)."""

from functools import cache

import torch
from torch import Tensor

from fr_kernels import native

SOURCE = "conv3x3"
ROWS, TILE, SPOTS = 6, 4, 36
"""As in the source: tiles of a panel, outputs of a tile's side, products of a tile."""
PANELS, MANY_PANELS = 3, 12
"""Of one block: so few that rows and sums stay in a core's second cache; more where the weights leave the third, since
each block fetches them anew. On two cores of a Zen 3, 128 channels of 64 x 64: 2.9 ms with 2 and 3.3 with 8; 640 of
32 x 32: 53 ms with 3 and 36 with 12."""
FEW_BYTES = 4 << 20
"""Of packed weights that stay in a cache."""
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""And infinity."""


def pack(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> G g G^T, computed in float64 and rounded once: float32 [36, O / wide, C, wide].

    wide: two vectors of the CPU at hand, so a packed weight is not for another machine.
    """
    outputs, inputs = weight.shape[:2]
    wide = _wide()
    g = _transform()
    spots = torch.einsum("ij,ocjk,lk->iloc", g, weight.detach().double(), g).flatten(0, 1)
    packed = spots.new_zeros(SPOTS, -(-outputs // wide) * wide, inputs, dtype=torch.float32)
    packed[:, :outputs] = spots
    return packed.unflatten(1, (-1, wide)).transpose(2, 3).contiguous()


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    padding: int,
    packed: Tensor | None,
) -> Tensor:
    """See `reference.conv3x3`."""
    packed = pack(weight) if packed is None else _checked(packed, weight)
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    outputs, sides = len(weight), (height + 2 * padding - 2, width + 2 * padding - 2)
    y = torch.empty(batch, outputs, *sides, memory_format=torch.channels_last)
    threads = native.threads()
    tiles = batch * -(-sides[0] // TILE) * -(-sides[1] // TILE)
    panels = _panels(tiles, threads, PANELS if packed.nbytes <= FEW_BYTES else MANY_PANELS)
    scratch = torch.empty(threads * _scratch(inputs, outputs, panels))
    bias = None if bias is None else bias.contiguous()
    native.call(
        SOURCE, "conv3x3", x, packed, bias, residual, y, scratch,
        batch, height, width, inputs, outputs, padding, panels, threads,
    )  # fmt: skip
    return y


def _checked(packed: Tensor, weight: Tensor) -> Tensor:
    """Of another shape it would be read beyond its end.

    Raises:
        ValueError: it is not of a weight of this shape on this machine.
    """
    outputs, inputs = weight.shape[:2]
    expected = (SPOTS, -(-outputs // _wide()), inputs, _wide())
    if packed.shape != expected or not packed.is_contiguous():
        raise ValueError(
            f"packed is {tuple(packed.shape)}; expected contiguous {expected}, as pack_conv3x3 makes it here"
        )
    return packed


@cache
def _wide() -> int:
    """Outputs of one product: two vectors."""
    return 2 * native.call(SOURCE, "lanes")


@cache
def _scratch(inputs: int, outputs: int, panels: int) -> int:
    return native.call(SOURCE, "conv3x3_scratch", inputs, outputs, panels)


def _panels(tiles: int, threads: int, most: int) -> int:
    """Of one block, so that all threads get as many blocks."""
    panels = -(-tiles // ROWS)
    rounds = max(-(-panels // (threads * most)), 1)
    return max(-(-panels // (threads * rounds)), 1)


def _transform() -> Tensor:
    """G [6, 3]: point p has p^j / product of its differences to the others; infinity has the last coefficient."""
    rows: list[list[float]] = []
    for point in POINTS:
        factor = 1.0
        for other in POINTS:
            factor *= point - other if other != point else 1.0
        rows.append([point**power / factor for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)
