"""Plain torch version of the face warp, written for reading (ours).

A matrix is the similarity A, frame -> crop; pixel centres lie at integers. The picture p is sampled by Keys' cubic
convolution (a = -3/4) of its 4 x 4 nearest pixels; outside lies its mirror image (the edge pixel itself not doubled):

    B_p(u, v) = sum_ij k(u - i) k(v - j) p[mirror j, mirror i]

Drawn through a map M of scale s = sqrt |det M|, picture -> output, it is

    s >= 1   D_p(x, y) = B_p(M^-1 (x, y))
    s <  1   D_p(x, y) = 1/4 sum of B_q(R M^-1 (x +- 1/4, y +- 1/4)),  q = p averaged to r = min(1, 2 s) of its size,
             but not below two pixels a side

where q[j] along an axis is the mean of p over [j / r, (j + 1) / r) and R the map of that resize. Then

    cut     c = round D_f(x, y) with M = A, f the part of the frame that the crop covers and its samples reach
    paste   f <- round(f + m b (D_o + g (f - D_c) - f)) with M = A^-1, where the mask m > 0
            m  = h(clamp((0.97 - (|u|^4 + |v|^4)^1/4) / 0.2, 0, 1)), h(t) = t^2 (3 - 2 t); u, v = A (x, y) in -1..1
            o  = the restored face, b = the blend
            g  = 0 where s(A) >= 1, else the share of the crop's finest detail that o kept:
                 <m (c - G c), o - G o> / <m (c - G c), c - G c>, clamped to 0..1, G a Gaussian of half a pixel

Both round once, half to even, and clamp to 0..255. Coordinates are float64 (here rounded to float32, from -1 to 1 in
what is sampled), pixels and weights float32, sums over a face float64. A face's cost follows its area: no pixel
outside `plan.part_box` is touched. D is `draw.py`.
"""

import math

import torch
from torch import Tensor

from fr_kernels.face_warp.draw import averaged, bands, draw, points, rounded, sampled
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

MASK_EDGE, MASK_RAMP = 0.97, 0.2
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
    return cut_part(part.of(frame), part, matrix, size)


def cut_part(
    pixels: Tensor,
    part: Box,
    matrix: Affine,
    size: int,
    fill: tuple[int, int, int] | None = None,
) -> Tensor:
    """`cut_face` from the pixels of `part_box`; `fill`: a colour outside them, instead of the mirror image."""
    return draw(pixels, drawing_of_part(part, matrix), size, size, fill)


def paste_face(frame: Tensor, face: Tensor, matrix: Affine, blend: float) -> tuple[int, int]:
    """[H, W, 3], changed, and the restored [S, S, 3] -> frame pixels read and written."""
    size = len(face)
    box = square_box(matrix, size, frame.shape[0], frame.shape[1])
    if not box.pixels:
        return 0, 0
    kept, read, picture = 0.0, box.pixels, face
    if matrix.scale < 1:
        part = part_box(matrix, size, frame.shape[0], frame.shape[1])
        crop = cut_part(part.of(frame), part, matrix, size)
        kept, read = kept_detail(crop, face), read + part.pixels
        picture = face.float().sub_(crop, alpha=kept)
    how = drawing(size, size, matrix.inverse())
    source, written = averaged(picture, how), 0
    unused = _outside_is_unused(source, how)
    for band in bands(box, how):
        mask = mask_at(matrix, band, size, frame.device)
        if inside := mask.amax(0).nonzero().flatten().tolist():
            mask = mask[:, inside[0] : inside[-1] + 1]
            left, right = band.left + inside[0], band.left + inside[-1] + 1
            part = Box(left, band.top, right, band.bottom)
            _blend(part.of(frame), sampled(source, how, part, zeros=unused), blend * mask, kept)
            written += int(mask.count_nonzero())
    return read, written


def mask_at(matrix: Affine, box: Box, size: int, device: torch.device | None) -> Tensor:
    """m at the frame pixels of a box: float32 [height, width].

    1 inside, 0 at the border, a square with round corners between. It falls from 1 to 0 over a tenth of the side, so
    the seam is as soft as the face is large; the outer 1.5 %, where a restorer sees the border of its input, is never
    used.
    """
    unit = Affine(2 / size, 0, 1 / size - 1, 0, 2 / size, 1 / size - 1).after(matrix)
    fourth = torch.view_as_real(points(unit, box, device)).square_().square_()
    radius = (fourth[..., 0] + fourth[..., 1]).sqrt_().sqrt_()
    ramp = radius.sub_(MASK_EDGE).div_(-MASK_RAMP).clamp_(0, 1)
    return (3 - 2 * ramp).mul_(ramp).mul_(ramp)


def face_mask(size: int, device: torch.device | None = None) -> Tensor:
    """m at the pixels of the crop: float32 [size, size]."""
    return mask_at(Affine(1, 0, 0, 0, 1, 0), Box(0, 0, size, size), size, device)


def kept_detail(crop: Tensor, restored: Tensor) -> float:
    """g of uint8 [S, S, 3] and its restoration: 0 none, 1 all; 1 where the crop has no detail."""
    before, after = (fine_detail(x) for x in (crop, restored))
    weighted = before * face_mask(len(crop), crop.device)
    energy, common = ((weighted * x).sum(dtype=torch.float64).item() for x in (before, after))
    return min(max(common / energy, 0.0), 1.0) if energy > 0 else 1.0


def fine_detail(image: Tensor) -> Tensor:
    """p - G p of [S, S, C]; mirrored at the border: float32 [C, S, S]."""
    size = len(image)
    at = _mirrored(torch.arange(-TAPS, size + TAPS, device=image.device), size)
    around = image.index_select(0, at).index_select(1, at).permute(2, 0, 1)
    planes = around.to(torch.float32, memory_format=torch.contiguous_format)
    blurred = planes
    for axis in (1, 2):
        lines = [blurred.narrow(axis, start, size) for start in range(2 * TAPS + 1)]
        weights = gaussian()
        blurred = lines[0] * weights[0]
        for line, weight in zip(lines[1:], weights[1:], strict=True):
            blurred.add_(line, alpha=weight)
    return planes[:, TAPS:-TAPS, TAPS:-TAPS] - blurred


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


def _outside_is_unused(source: Tensor, how: Drawing) -> bool:
    """Whether no sample where the mask of a face is not zero reads beyond q.

    None does if what the mask leaves of q at a side is wider than a sample lies from the middle of its pixel and from
    the farthest of its bicubic neighbours.
    """
    to = how.to_source
    aside = how.spread * max(abs(to.xx) + abs(to.xy), abs(to.yx) + abs(to.yy))
    return (1 - MASK_EDGE) / 2 * min(source.shape[:2]) >= 2 + aside


def _blend(view: Tensor, face: Tensor, weight: Tensor, kept: float) -> None:
    """A pixel of weight [height, width] zero gets its own bytes again; `face` is used up."""
    old = torch.empty_like(face).copy_(view)
    face.sub_(old, alpha=1 - kept).mul_(weight[..., None])
    view.copy_(rounded(old.add_(face)))
