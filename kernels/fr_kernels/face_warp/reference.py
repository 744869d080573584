"""Plain torch version of the face warp, written for reading (ours).

A matrix is the similarity A, frame -> crop; pixel centres lie at integers. The picture p is sampled by Keys' cubic
convolution (a = -3/4) of its 4 x 4 nearest pixels; outside lies its mirror image (the edge pixel itself not doubled):

    B_p(u, v) = sum_ij k(u - i) k(v - j) p[mirror j, mirror i]

Drawn through a map M of scale s = sqrt |det M|, picture -> output, it is

    s >= 1   D_p(x, y) = B_p(M^-1 (x, y))
    s <  1   D_p(x, y) = 1/4 sum of B_q(R M^-1 (x +- 1/4, y +- 1/4)),  q = p averaged to r = min(1, 2 s) of its size

where q[j] along an axis is the mean of p over [j / r, (j + 1) / r) and R the map of that resize. Then

    cut     c = round D_f(x, y) with M = A, f the part of the frame that the crop covers and its samples reach
    paste   f <- round(f + m b (D_o + g (f - D_c) - f)) with M = A^-1, where the mask m > 0
            m  = h(clamp((0.97 - (|u|^4 + |v|^4)^1/4) / 0.2, 0, 1)), h(t) = t^2 (3 - 2 t); u, v = A (x, y) in -1..1
            o  = the restored face, b = the blend
            g  = 0 where s(A) >= 1, else the share of the crop's finest detail that o kept:
                 <m (c - G c), o - G o> / <m (c - G c), c - G c>, clamped to 0..1, G a Gaussian of half a pixel

Both round once, half to even, and clamp to 0..255. Coordinates are float64, pixels and weights float32, sums over a
face float64. A face's cost follows its area: no pixel outside `plan.part_box` is touched.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.face_warp.plan import (
    Affine,
    Box,
    Drawing,
    affine,
    drawing,
    drawing_of_part,
    part_box,
    square_box,
)

BAND = 128  # frame rows blended at a time: bounds the memory of a face that fills its frame
AVERAGED_ROWS = 64  # rows averaged at a time: bounds likewise
CHUNK = 1024  # samples of a batch entry: torch divides the work on a CPU among its threads by batch alone
MASK_EDGE, MASK_RAMP = 0.97, 0.2
SPOTS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
SIGMA, TAPS = 0.5, 2  # of the Gaussian, and its taps either side


def cut_faces(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> Tensor:
    """uint8 [F, H, W, 3], the frame of each face [N] and its matrix [N, 2, 3] -> uint8 [N, size, size, 3]."""
    crops = frames.new_empty((len(which), size, size, 3))
    for crop, frame, matrix in zip(crops, which.tolist(), matrices.tolist(), strict=True):
        crop.copy_(cut_face(frames[frame], affine(matrix), size))
    return crops


def paste_faces(
    frames: Tensor, which: Tensor, restored: Tensor, matrices: Tensor, blend: float
) -> Tensor:
    """Paste one face after the other into uint8 [F, H, W, 3], in place.

    Returns:
        int64 [N, 2], frame pixels read and written for each face.
    """
    counts = [
        paste_face(frames[frame], face, affine(matrix), blend)
        for frame, face, matrix in zip(which.tolist(), restored, matrices.tolist(), strict=True)
    ]
    return torch.tensor(counts, dtype=torch.int64, device=frames.device).view(-1, 2)


def cut_face(frame: Tensor, matrix: Affine, size: int) -> Tensor:
    """[H, W, 3] -> uint8 [size, size, 3]."""
    part = part_box(matrix, size, frame.shape[0], frame.shape[1])
    return cut_part(frame[part.top : part.bottom, part.left : part.right], part, matrix, size)


def cut_part(
    pixels: Tensor,
    part: Box,
    matrix: Affine,
    size: int,
    fill: tuple[int, int, int] | None = None,
) -> Tensor:
    """`cut_face` from the pixels of `part_box`; `fill`: a colour outside them, instead of the mirror image."""
    return rounded(_drawn(pixels, drawing_of_part(part, matrix), size, size, fill))


def paste_face(frame: Tensor, face: Tensor, matrix: Affine, blend: float) -> tuple[int, int]:
    """[H, W, 3], changed, and the restored [S, S, 3] -> frame pixels read and written."""
    size = len(face)
    box = square_box(matrix, size, frame.shape[0], frame.shape[1])
    if not box.pixels:
        return 0, 0
    kept, read, difference = 0.0, box.pixels, face.float()
    if matrix.scale < 1:
        crop = cut_face(frame, matrix, size)
        kept, read = kept_detail(crop, face), 2 * read
        difference = difference - kept * crop
    how = drawing(size, size, matrix.inverse())
    source, written = averaged(difference, how), 0
    for top in range(box.top, box.bottom, BAND):
        band = Box(box.left, top, box.right, min(top + BAND, box.bottom))
        view = frame[band.top : band.bottom, band.left : band.right]
        x, y = _pixels(band, frame.device)
        mask = mask_at(*matrix.mapped(x, y), size)
        inside = mask > 0
        x, y = (at.expand_as(mask)[inside] for at in (x, y))
        old, weight = view[inside].float(), blend * mask[inside, None]
        view[inside] = rounded(old + weight * (sampled(source, how, x, y) - (1 - kept) * old))
        written += len(x)
    return read, written


def drawn(
    image: Tensor,
    matrix: Affine,
    width: int,
    height: int,
    fill: tuple[int, int, int] | None = None,
) -> Tensor:
    """D of [H, W, C] -> float [height, width, C], not rounded."""
    return _drawn(image, drawing(image.shape[0], image.shape[1], matrix), width, height, fill)


def rounded(values: Tensor) -> Tensor:
    """To uint8, half to even."""
    return values.round().clamp(0, 255).to(torch.uint8)


def averaged(image: Tensor, how: Drawing) -> Tensor:
    """q: [H, W, C] -> float [rows, columns, C]."""
    image = image if image.is_floating_point() or how.reduce < 1 else image.float()
    if how.reduce == 1:
        return image
    bands = [
        _means(_means(image, 0, how.reduce, start, min(start + AVERAGED_ROWS, how.rows)), 1,
               how.reduce, 0, how.columns)
        for start in range(0, how.rows, AVERAGED_ROWS)
    ]  # fmt: skip
    return torch.cat(bands)


def sampled(
    source: Tensor, how: Drawing, x: Tensor, y: Tensor, fill: tuple[int, int, int] | None = None
) -> Tensor:
    """D at output pixels x, y, float64 [n], from q [rows, columns, C]: [n, C]."""
    channels, spots = source.shape[2], SPOTS if how.spread else SPOTS[:1]
    grid = torch.cat([_grid(source, how, x + a * how.spread, y + b * how.spread) for a, b in spots])
    background = None if fill is None else source.new_tensor(fill)[:channels]
    batch = source if background is None else source - background
    batch = batch.permute(2, 0, 1).expand(len(grid), -1, -1, -1)
    # Where no sample reads beyond the picture, all borders are the same, and zeros cost a CPU a quarter less.
    inner = bool((grid.abs() < 1 - 2 / max(min(source.shape[:2]) - 1, 1)).all())
    border = "reflection" if background is None and not inner else "zeros"
    out = F.grid_sample(batch, grid, "bicubic", border, align_corners=True)
    out = out.view(len(spots), -1, channels, CHUNK).mean(0)
    out = out.permute(0, 2, 1).reshape(-1, channels)[: len(x)]
    return out if background is None else out + background


def mask_at(x: Tensor, y: Tensor, size: int) -> Tensor:
    """m at points of the crop, float32: 1 inside, 0 at the border, a square with round corners between.

    It falls from 1 to 0 over a tenth of the side, so the seam is as soft as the face is large; the outer 1.5 %, where
    a restorer sees the border of its input, is never used.
    """
    across, down = (((at + 0.5) * (2 / size) - 1).float() for at in (x, y))
    radius = (across.square().square() + down.square().square()).sqrt().sqrt()
    ramp = ((MASK_EDGE - radius) / MASK_RAMP).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def face_mask(size: int, device: torch.device | None = None) -> Tensor:
    """m at the pixels of the crop: float32 [size, size]."""
    at = torch.arange(size, dtype=torch.float64, device=device)
    return mask_at(at, at[:, None], size)


def kept_detail(crop: Tensor, restored: Tensor) -> float:
    """g of uint8 [S, S, 3] and its restoration: 0 none, 1 all; 1 where the crop has no detail."""
    before, after = (fine_detail(x.float()) for x in (crop, restored))
    weighted = before * face_mask(len(crop), crop.device)[..., None]
    energy, common = ((weighted * x).sum(dtype=torch.float64).item() for x in (before, after))
    return min(max(common / energy, 0.0), 1.0) if energy > 0 else 1.0


def fine_detail(image: Tensor) -> Tensor:
    """p - G p of [H, W, C]; mirrored at the border."""
    blurred = image
    weights = gaussian()
    for axis in (0, 1):
        length = blurred.shape[axis]
        at = torch.arange(length, device=image.device)
        terms = [
            weight * blurred.index_select(axis, _mirrored(at + offset - TAPS, length))
            for offset, weight in enumerate(weights)
        ]
        blurred = torch.stack(terms).sum(0)
    return image - blurred


def gaussian() -> list[float]:
    """The weights of G along an axis; their sum is 1."""
    raw = [math.exp(-(at**2) / (2 * SIGMA**2)) for at in range(-TAPS, TAPS + 1)]
    return [weight / sum(raw) for weight in raw]


def _mirrored(index: Tensor, length: int) -> Tensor:
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index.abs() % period
    return torch.where(index < length, index, period - index)


def _grid(source: Tensor, how: Drawing, x: Tensor, y: Tensor) -> Tensor:
    """Where output pixels lie in q, from -1 to 1, as `grid_sample` wants it: [chunks, 1, CHUNK, 2], the last padded."""
    u, v = how.to_source.mapped(x, y)
    down, across = (max(length - 1, 1) / 2 for length in source.shape[:2])
    grid = torch.stack([u / across - 1, v / down - 1], 1).to(source.dtype)
    return F.pad(grid, (0, 0, 0, -len(x) % CHUNK)).view(-1, 1, CHUNK, 2)


def _drawn(
    image: Tensor, how: Drawing, width: int, height: int, fill: tuple[int, int, int] | None
) -> Tensor:
    x, y = _pixels(Box(0, 0, width, height), image.device)
    x, y = (at.expand(height, width).flatten() for at in (x, y))
    return sampled(averaged(image, how), how, x, y, fill).view(height, width, -1)


def _pixels(box: Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of a box: x float64 [1, width], y float64 [height, 1]."""
    x = torch.arange(box.left, box.right, dtype=torch.float64, device=device)
    y = torch.arange(box.top, box.bottom, dtype=torch.float64, device=device)
    return x[None], y[:, None]


def _means(image: Tensor, axis: int, reduce: float, start: int, stop: int) -> Tensor:
    """The means start .. stop - 1 along an axis, the j-th over [j / reduce, (j + 1) / reduce)."""
    length = image.shape[axis]
    index = torch.arange(start, stop, dtype=torch.float64, device=image.device)
    low, high = index / reduce, ((index + 1) / reduce).clamp(max=length)
    first = low.floor().long()
    shape = [1] * image.ndim
    shape[axis] = -1
    total: Tensor | None = None
    for step in range(int((high.ceil().long() - first).max())):
        at = first + step
        weight = (torch.minimum(high, at + 1) - torch.maximum(low, at)).clamp(min=0) / (high - low)
        pixels = image.index_select(axis, at.clamp(max=length - 1))
        term = pixels * weight.to(
            pixels.dtype if pixels.is_floating_point() else torch.float32
        ).view(shape)
        total = term if total is None else total + term
    assert total is not None
    return total
