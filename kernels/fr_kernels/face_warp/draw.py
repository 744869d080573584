"""D of the formula at the head of `reference.py`: a picture drawn through a map without aliasing, in plain torch."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.face_warp.plan import Affine, Box, Drawing, drawing

# Drawn at a time: bounds the memory of a face of any size. With an eighth of it a CPU takes half as long again.
SAMPLES = 131072
AVERAGED_ROWS = 64  # averaged at a time: likewise
SPOTS = ((-1, -1), (1, -1), (-1, 1), (1, 1))


def drawn(
    image: Tensor,
    matrix: Affine,
    width: int,
    height: int,
    fill: tuple[int, int, int] | None = None,
) -> Tensor:
    """D of uint8 or float [H, W, C] -> [height, width, C] of the same dtype, rounded if that is uint8."""
    return draw(image, drawing(image.shape[0], image.shape[1], matrix), width, height, fill)


def draw(
    image: Tensor, how: Drawing, width: int, height: int, fill: tuple[int, int, int] | None = None
) -> Tensor:
    """`drawn` as planned."""
    source, out = averaged(image, how), image.new_empty((height, width, image.shape[2]))
    background = source.new_tensor(fill or (0, 0, 0))[: image.shape[2]]
    if fill:
        # Written out for each pixel of a row: a loop over three numbers takes half as long again.
        source = source - background.repeat(how.columns, 1)
    for band in bands(Box(0, 0, width, height), how):
        values = sampled(source, how, band, zeros=fill is not None)
        values = values + background if fill else values
        out[band.top : band.bottom] = values if out.is_floating_point() else rounded(values)
    return out


def rounded(values: Tensor) -> Tensor:
    """To uint8, half to even."""
    return values.round().clamp_(0, 255).to(torch.uint8)


def bands(box: Box, how: Drawing) -> Iterator[Box]:
    """A box in bands of whole rows that are drawn at a time."""
    rows = max(SAMPLES // ((len(SPOTS) if how.spread else 1) * box.width), 1)
    for top in range(box.top, box.bottom, rows):
        yield Box(box.left, top, box.right, min(top + rows, box.bottom))


def averaged(image: Tensor, how: Drawing) -> Tensor:
    """q: [H, W, C] -> float [rows, columns, C]."""
    if how.reduce == 1:
        return image.float()
    height, width, channels = image.shape
    down, across = (
        _shares(length, count, how.reduce, image.device)
        for length, count in ((height, how.rows), (width, how.columns))
    )
    means = image.new_zeros((how.rows, how.columns, channels), dtype=torch.float32)
    for top in range(0, how.rows, AVERAGED_ROWS):
        band = means[top : top + AVERAGED_ROWS]
        lines = means.new_zeros((len(band), width, channels))
        for at, share in down:
            at, share = (x[top : top + AVERAGED_ROWS] for x in (at, share))
            lines.addcmul_(image.index_select(0, at).float(), share[:, None, None])
        for at, share in across:
            band.addcmul_(lines.index_select(1, at), share[:, None].repeat(1, channels))
    return means


def sampled(source: Tensor, how: Drawing, box: Box, *, zeros: bool = False) -> Tensor:
    """D at the output pixels of a box, from q [rows, columns, C]: [height, width, C], each row plane by plane.

    `zeros`: outside q lies 0, instead of the mirror image.
    """
    spots = [(how.spread * a, how.spread * b) for a, b in (SPOTS if how.spread else SPOTS[:1])]
    to_unit = _to_unit(source, how)
    grid = torch.view_as_real(points(to_unit, box, source.device, spots))[:, None]
    # One row an entry of the batch: torch divides the work on a CPU among its threads by batch alone.
    batch = source.permute(2, 0, 1).expand(len(grid), -1, -1, -1)
    # If nothing outside is read the two are the same, and zeros cost a CPU a quarter less.
    outside = "zeros" if zeros or _reads_inside(source, to_unit, box, spots) else "reflection"
    out = F.grid_sample(batch, grid, "bicubic", outside, align_corners=True)
    out = out.view(len(spots), box.height, -1, box.width)
    return (out.mean(0) if how.spread else out[0]).permute(0, 2, 1)


def points(
    matrix: Affine,
    box: Box,
    device: torch.device | None,
    spots: Sequence[tuple[float, float]] = ((0.0, 0.0),),
) -> Tensor:
    """Where the pixels of a box go, beside their middles if `spots` says so: u + iv, complex64 [spots * height, width].

    As complex numbers, what a row and what a column add up to comes out in pairs: in float64 at a quarter of the cost
    of two sums and a stack.
    """
    x = torch.arange(box.left, box.right, dtype=torch.float64, device=device)
    y = torch.arange(box.top, box.bottom, dtype=torch.float64, device=device)
    starts = torch.tensor([complex(*matrix.point(a, b)) for a, b in spots], dtype=torch.complex128)
    rows = starts.to(device)[:, None] + complex(matrix.xy, matrix.yy) * y
    return (rows.view(-1, 1) + complex(matrix.xx, matrix.yx) * x).to(torch.complex64)


def _to_unit(source: Tensor, how: Drawing) -> Affine:
    """Output pixel -> place in q, from -1 to 1, the middles of its outermost pixels."""
    across, down = (max(length - 1, 1) / 2 for length in (source.shape[1], source.shape[0]))
    return Affine(1 / across, 0, -1, 0, 1 / down, -1).after(how.to_source)


def _reads_inside(
    source: Tensor, to_unit: Affine, box: Box, spots: Sequence[tuple[float, float]]
) -> bool:
    """Whether all bicubic neighbours of all samples of a box lie in q."""
    across, down = (1 - 2 / max(length - 1, 1) for length in (source.shape[1], source.shape[0]))
    ends = [(x, y) for x in (box.left, box.right - 1) for y in (box.top, box.bottom - 1)]
    places = [to_unit.point(x + a, y + b) for x, y in ends for a, b in spots]
    return all(abs(u) <= across and abs(v) <= down for u, v in places)


def _shares(
    length: int, count: int, reduce: float, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """The means along an axis, the j-th over [j / reduce, (j + 1) / reduce), as sums of single pixels.

    Each pair: which pixel, int64 [count], and its share of the mean, float32 [count].
    """
    index = torch.arange(count, dtype=torch.float64, device=device)
    low, high = index / reduce, ((index + 1) / reduce).clamp(max=length)
    first = low.floor()
    pairs: list[tuple[Tensor, Tensor]] = []
    for step in range(int((high.ceil() - first).max())):
        at = first + step
        share = (torch.minimum(high, at + 1) - torch.maximum(low, at)).clamp(min=0) / (high - low)
        pairs.append((at.clamp(max=length - 1).long(), share.float()))
    return pairs
