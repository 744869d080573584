"""Where and at which sizes the face detector looks at a photo."""

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from fr_deploy.faces.geometry import Affine

SQUARES = (320, 640, 1280)  # sides of the network's input
SEEN = 20  # px of a face at the input: 55 of 60 found by one look (16 px: 32, 24 px: all)
SURE = 24
NEAR = 2.0  # pixels from an edge at which a box counts as cut by it


@dataclass(frozen=True)
class Level:
    """One size at which the photo is searched.

    Attributes:
        scale: pixels of the searched picture per photo pixel.
        square: side of the network's input.
        overlap: pixels that neighbouring squares share.
    """

    scale: float
    square: int
    overlap: int = 0


def search_levels(height: int, width: int, min_face: int) -> list[Level]:
    """The sizes at which a photo is searched: a face of `min_face` px has `SEEN` px at the input.

    A photo whose long side then fits 640 px is searched once. A larger one is searched whole at
    640 px (1280 where the tiles span more than 5120) for its large faces, and in 1280 px tiles for
    its small ones. Tiles overlap by the largest face the whole view may miss (`SURE` px there), so
    each face lies uncut in one of the two.
    """
    longest = max(height, width)
    fine = min(SEEN / min_face, 2.0)
    if round(longest * fine) <= 640:
        scale = max(fine, min(1.0, 640 / longest))
        return [Level(scale, next(s for s in SQUARES if s >= round(longest * scale)))]
    coarse = 640 if longest * fine <= 5120 else 1280
    overlap = round(SURE * longest * fine / coarse) + 8
    return [Level(coarse / longest, coarse), Level(fine, 1280, overlap)]


def resized(rgb: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """The photo at another size: averaged by area when smaller, bicubic when larger."""
    if scale == 1:
        return rgb
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    height, width = (round(length * scale) for length in rgb.shape[:2])
    if not height or not width:  # thinner than a pixel: nothing to find, but no error either
        return rgb[:1, :1]
    image = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=how)
    return image.astype(np.uint8, copy=False)


def turn(rotation: int, height: int, width: int) -> Affine:
    """The map from a picture to itself turned clockwise by 0, 90, 180 or 270 degrees."""
    maps = {
        0: ((1, 0, 0), (0, 1, 0)),
        90: ((0, -1, height - 1), (1, 0, 0)),
        180: ((-1, 0, width - 1), (0, -1, height - 1)),
        270: ((0, 1, 0), (-1, 0, width - 1)),
    }
    return np.array(maps[rotation], np.float64)


def tile_corners(height: int, width: int, level: Level) -> list[tuple[int, int]]:
    """The left upper corners (x, y) of the squares that cover a picture, evenly spread."""
    return [(x, y) for y, x in product(_starts(height, level), _starts(width, level))]


def _starts(length: int, level: Level) -> list[int]:
    last = max(length - level.square, 0)
    steps = -(-last // (level.square - level.overlap))
    return np.linspace(0, last, steps + 1).round().astype(int).tolist() if last else [0]


def uncut(
    boxes: NDArray[np.float32], corner: tuple[int, int], size: tuple[int, int], square: int
) -> NDArray[np.bool_]:
    """Which boxes of a tile stay clear of its inner edges, where the next tile shows the rest.

    Args:
        boxes: float32 [K, 4], pixels of the tile.
        corner: x, y of the tile.
        size: width and height of the whole picture.
        square: side of the tile.

    Returns:
        bool [K].
    """
    inner_low = np.array(corner) > 0
    inner_high = np.array(corner) + square < np.array(size)
    cut_low = (boxes[:, :2] < NEAR) & inner_low
    cut_high = (boxes[:, 2:] > square - NEAR) & inner_high
    return ~np.any(cut_low | cut_high, axis=1)
