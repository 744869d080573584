"""Where a face's pixels lie: affine maps, boxes, and how a picture is drawn through a map.

Pixel centres lie at integer coordinates. All of it follows from the matrices and sizes alone, so it is known before
any pixel is touched; `reference.py` and `cuda_impl.py` both work from it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

SPREAD = 0.25  # a shrunk picture is sampled in the middle of each quarter of a pixel
REACH = 3  # pixels that a sample may lie from one of its bicubic neighbours, and one to spare


class Affine(NamedTuple):
    """(x, y) -> (xx x + xy y + x0, yx x + yy y + y0)."""

    xx: float
    xy: float
    x0: float
    yx: float
    yy: float
    y0: float

    @property
    def scale(self) -> float:
        """Pixels of the target per pixel of the source, along a side."""
        return math.sqrt(abs(self.xx * self.yy - self.xy * self.yx))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where one point goes."""
        return self.xx * x + (self.xy * y + self.x0), self.yx * x + (self.yy * y + self.y0)

    def after(self, inner: "Affine") -> "Affine":
        """The map that applies `inner`, then this one."""
        return Affine(
            self.xx * inner.xx + self.xy * inner.yx,
            self.xx * inner.xy + self.xy * inner.yy,
            self.xx * inner.x0 + self.xy * inner.y0 + self.x0,
            self.yx * inner.xx + self.yy * inner.yx,
            self.yx * inner.xy + self.yy * inner.yy,
            self.yx * inner.x0 + self.yy * inner.y0 + self.y0,
        )

    def inverse(self) -> "Affine":
        """The map back."""
        d = self.xx * self.yy - self.xy * self.yx
        xx, xy, yx, yy = self.yy / d, -self.xy / d, -self.yx / d, self.xx / d
        return Affine(
            xx, xy, -(xx * self.x0 + xy * self.y0), yx, yy, -(yx * self.x0 + yy * self.y0)
        )


def affine(matrix: Sequence[Sequence[float]]) -> Affine:
    """From the two rows of a matrix [2, 3].

    Raises:
        ValueError: a number is not finite, or the map has no inverse.
    """
    (xx, xy, x0), (yx, yy, y0) = matrix
    made = Affine(xx, xy, x0, yx, yy, y0)
    if not all(map(math.isfinite, made)) or not made.scale > 0:
        raise ValueError(
            f"a matrix is {[list(row) for row in matrix]}; expected finite numbers and a map that can be inverted"
        )
    return made


def scaling(scale: float) -> Affine:
    """The map from a picture to itself resized by `scale`, on half-pixel centres."""
    shift = 0.5 * scale - 0.5
    return Affine(scale, 0.0, shift, 0.0, scale, shift)


def translation(x: float, y: float) -> Affine:
    """The map that adds (x, y)."""
    return Affine(1.0, 0.0, x, 0.0, 1.0, y)


class Box(NamedTuple):
    """A half-open range of pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels a row; 0 or less when the box is empty."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows; 0 or less when the box is empty."""
        return self.bottom - self.top

    @property
    def pixels(self) -> int:
        """How many it holds."""
        return max(self.width, 0) * max(self.height, 0)

    def of(self, picture: Tensor) -> Tensor:
        """Its pixels in [H, W, ...], a view."""
        return picture[self.top : self.bottom, self.left : self.right]

    def meets(self, other: "Box") -> bool:
        """Whether the two share a pixel."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def square_box(matrix: Affine, size: int, height: int, width: int) -> Box:
    """The pixels of a frame that a crop touches; empty when they do not meet.

    Args:
        matrix: frame -> crop.
        size: side of the crop.
        height: of the frame.
        width: of the frame.
    """
    back = matrix.inverse()
    ends = (-0.5, size - 0.5)
    xs, ys = zip(*(back.point(x, y) for x in ends for y in ends), strict=True)
    return Box(
        max(math.floor(min(xs)), 0),
        max(math.floor(min(ys)), 0),
        min(math.ceil(max(xs)) + 1, width),
        min(math.ceil(max(ys)) + 1, height),
    )


def part_box(matrix: Affine, size: int, height: int, width: int) -> Box:
    """The pixels of a frame that cutting reads: `square_box` and what the samples at its edge reach.

    A crop wholly outside the frame sees the nearest pixels, so this is never empty.
    """
    box = square_box(matrix, size, height, width)
    margin = 1 + math.ceil(REACH / min(1.0, 2 * matrix.scale))
    return Box(
        min(max(box.left - margin, 0), width - 1),
        min(max(box.top - margin, 0), height - 1),
        max(min(box.right + margin, width), 1),
        max(min(box.bottom + margin, height), 1),
    )


@dataclass(frozen=True)
class Drawing:
    """How a picture is drawn through a map without aliasing (formula: `reference.py`)."""

    reduce: float
    """The picture is first averaged to this part of its size; 1: it is not."""
    rows: int
    columns: int
    """Of the averaged picture."""
    spread: float
    """0: one sample an output pixel. Else the mean of four, this far from its middle along both axes."""
    to_source: Affine
    """Output pixel -> pixel of the averaged picture."""


def drawing(height: int, width: int, matrix: Affine) -> Drawing:
    """How a picture of this size is drawn through `matrix` (picture -> output)."""
    scale, back = matrix.scale, matrix.inverse()
    if scale >= 1:
        return Drawing(1.0, height, width, 0.0, back)
    # At least two pixels a side stay: a sliver of a photo must not vanish.
    reduce = min(1.0, max(2 * scale, 2 / min(height, width)))
    rows, columns = round(height * reduce), round(width * reduce)
    return Drawing(reduce, rows, columns, SPREAD, scaling(reduce).after(back))


def drawing_of_part(part: Box, matrix: Affine) -> Drawing:
    """How this part of a frame is drawn through `matrix` (frame -> output)."""
    return drawing(part.height, part.width, matrix.after(translation(part.left, part.top)))


@dataclass(frozen=True)
class Place:
    """One face: where it lies, and how it is cut and pasted."""

    face: int
    frame: int
    matrix: Affine
    part: Box
    """What cutting reads; holds `box`."""
    box: Box
    """What pasting reads and writes; may be empty."""
    cut: Drawing
    paste: Drawing

    @property
    def large(self) -> bool:
        """Whether the frame has detail finer than the crop, so that pasting cuts again."""
        return self.matrix.scale < 1

    @property
    def read(self) -> int:
        """Frame pixels that pasting reads: those of `box`, and for a large face those of `part` before."""
        return self.box.pixels + (self.part.pixels if self.large and self.box.pixels else 0)


def places(frames: Tensor, which: Tensor, matrices: Tensor, size: int) -> list[Place]:
    """All faces of a call, in order."""
    height, width = frames.shape[1:3]
    found: list[Place] = []
    for face, (frame, rows) in enumerate(zip(which.tolist(), matrices.tolist(), strict=True)):
        matrix = affine(rows)
        part = part_box(matrix, size, height, width)
        box = square_box(matrix, size, height, width)
        cut, paste = drawing_of_part(part, matrix), drawing(size, size, matrix.inverse())
        found.append(Place(face, frame, matrix, part, box, cut, paste))
    return found


def layers(faces: Sequence[Place]) -> list[list[Place]]:
    """Groups of faces that touch no pixel of one another; of two that do, the later face is in a later group.

    Faces outside their frame are left out.
    """
    groups: list[list[Place]] = []
    for place in faces:
        if place.box.pixels:
            met = [at for at, group in enumerate(groups) if any(_meet(place, p) for p in group)]
            level = 1 + max(met, default=-1)
            if level == len(groups):
                groups.append([])
            groups[level].append(place)
    return groups


def cut_launches(faces: Sequence[Place]) -> int:
    """Kernels that `cuda_impl.cut_faces` launches; the copies of its tables to the GPU are none."""
    return int(any(place.cut.reduce < 1 for place in faces)) + bool(faces)


def paste_launches(layer: Sequence[Place]) -> int:
    """Kernels that `cuda_impl.paste_faces` launches for one layer."""
    large = [place for place in layer if place.large]
    kept = cut_launches(large) + 2 if large else 0
    return kept + any(place.paste.reduce < 1 for place in layer) + 1


def _meet(a: Place, b: Place) -> bool:
    return a.frame == b.frame and a.part.meets(b.part)
