"""Photos to measure with: made, not collected, so that every machine measures the same ones."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.runtime.quality import FACE

HEIGHT, WIDTH = 1224, 1632
"""2 megapixels."""
_FACE_SIDE = 640
_GRAIN = 4.0  # of 255: a JPEG of quality 92 then has 0.7 MB, as cameras write it
_BLUR = 80.0


def write_photos(folder: Path, count: int) -> None:
    """Write JPEG photos of 2 megapixels, 4:2:0, each with one face at another place.

    Args:
        folder: is made.
        count: how many.
    """
    folder.mkdir(parents=True)
    face = _face()
    wall = cv2.resize(face[::-1], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    wall = np.asarray(cv2.GaussianBlur(wall, (0, 0), _BLUR), np.float32)
    drawn = cv2.resize(face, (_FACE_SIDE, _FACE_SIDE), interpolation=cv2.INTER_CUBIC)
    weight = _disc(_FACE_SIDE)
    for number in range(count):
        rng = np.random.default_rng(number)
        picture = wall.copy()
        top = int(rng.integers(0, HEIGHT - _FACE_SIDE))
        left = int(rng.integers(0, WIDTH - _FACE_SIDE))
        part = picture[top : top + _FACE_SIDE, left : left + _FACE_SIDE]
        part += weight * (drawn - part)
        _save(picture, rng, folder / f"{number:04}.jpg", quality=92, subsampling="4:2:0")


def write_crops(folder: Path, count: int) -> None:
    """Write aligned faces of 512 px as JPEG of quality 95, 4:2:0; each with other grain.

    Args:
        folder: is made.
        count: how many.
    """
    folder.mkdir(parents=True)
    face = _face().astype(np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        _save(face, rng, folder / f"{number:05}.jpg", quality=95, subsampling="4:2:0")


def _face() -> NDArray[np.uint8]:
    with Image.open(FACE) as image:
        return np.asarray(image.convert("RGB").resize((512, 512), Image.Resampling.LANCZOS))


def _disc(side: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    rim = (0.5 - np.hypot(x, y) / side) / 0.05
    return np.clip(rim, 0, 1).astype(np.float32)[..., None]


def _save(
    picture: NDArray[np.float32], rng: np.random.Generator, path: Path, **options: object
) -> None:
    grain = rng.normal(0, _GRAIN, picture.shape[:2]).astype(np.float32)[..., None]
    pixels = np.clip(picture + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", **options)
