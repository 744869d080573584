"""Small pictures of a result, kept for the report."""

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

PHOTO_SIDE = 256
FACE_SIDE = 160
_QUALITY = 80


def thumb_size(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Width and height of a picture [H, W, ...] made to fit a square of `side` pixels; it is never enlarged."""
    height, width = shape[:2]
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def thumb(rgb: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """A JPEG of a picture, uint8 [H, W, 3], at another size: width and height."""
    if size != (rgb.shape[1], rgb.shape[0]):
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return out.getvalue()


class Before:
    """A photo and its first face as they were, taken before the photo's pixels are written to.

    Args:
        rgb: the photo, uint8 [H, W, 3].
        crops: uint8 [N, 512, 512, 3], at least one.
    """

    def __init__(self, rgb: NDArray[np.uint8], crops: NDArray[np.uint8]) -> None:
        self._photo_size = thumb_size(rgb.shape, PHOTO_SIDE)
        self._face_size = FACE_SIDE, FACE_SIDE
        self._photo, self._face = thumb(rgb, self._photo_size), thumb(crops[0], self._face_size)

    def photo(self, after: NDArray[np.uint8]) -> tuple[bytes, bytes]:
        """The photo before and after, JPEG of one size even if it was enlarged; `after` is uint8 [H, W, 3]."""
        return self._photo, thumb(after, self._photo_size)

    def face(self, after: NDArray[np.uint8]) -> tuple[bytes, bytes]:
        """The first face before and after, JPEG; `after` are the restored crops, uint8 [N, 512, 512, 3]."""
        return self._face, thumb(after[0], self._face_size)
