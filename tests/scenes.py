"""Photos made of known faces at known places, so that a test knows the truth.

Drawn with plain OpenCV calls, not with `fr_deploy.faces.geometry`: an error there must not cancel
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

FACES = Path(__file__).parent / "data" / "faces"
Image = NDArray[np.uint8]


def face_crop(name: str) -> Image:
    """One of the committed FFHQ-aligned faces, uint8 [512, 512, 3] RGB."""
    return np.asarray(cv2.imread(str(FACES / f"{name}.jpg"), cv2.IMREAD_COLOR_RGB), np.uint8)


def face_weight(photo: Image, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of a restored face of 512 px each pixel of its photo takes; `matrix`: photo -> crop."""
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    u, v = (np.tensordot(matrix, [x, y, np.ones_like(x)], 1) + 0.5) / 256 - 1
    ramp = np.clip((0.97 - (u**4 + v**4) ** 0.25) / 0.2, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


@dataclass(frozen=True)
class Placed:
    """A face in a scene: its 512 px crop drawn `side` px wide (the face's box is about 0.7 high),

    turned clockwise by `angle` degrees, its middle near `at` (x, y).
    """

    crop: Image
    side: int
    at: tuple[int, int]
    angle: float = 0.0


def texture(height: int, width: int, seed: int = 0) -> Image:
    """Noise at four scales, no face in it: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    total = np.full((height, width, 3), 118.0, np.float32)
    for step in (64, 16, 4, 2):
        grain = rng.normal(0, 14, (-(-height // step), -(-width // step), 3)).astype(np.float32)
        total += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    return total.clip(0, 255).astype(np.uint8)


def compose_scene(photo: Image, faces: Sequence[Placed]) -> tuple[Image, list[NDArray[np.float64]]]:
    """Draw faces, each as a disc with a soft rim, over a copy of `photo`.

    Returns:
        the photo, and for each face the true map crop -> photo, float64 [2, 3].
    """
    photo, maps = photo.copy(), []
    for face in faces:
        maps.append(_draw(photo, face))
    return photo, maps


def points_in(matrix: NDArray[np.float64], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points [..., 2] sent through a map [2, 3]."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def _draw(photo: Image, face: Placed) -> NDArray[np.float64]:
    side, middle = face.side, (face.side - 1) / 2
    how = cv2.INTER_AREA if side < 512 else cv2.INTER_CUBIC
    small = cv2.resize(face.crop, (side, side), interpolation=how)
    turned = cv2.getRotationMatrix2D((middle, middle), -face.angle, 1)
    drawn = cv2.warpAffine(small, turned, (side, side), flags=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side] - middle
    alpha = np.clip((0.5 - np.hypot(x, y) / side) / 0.05, 0, 1)[..., None]
    left, top = face.at[0] - side // 2, face.at[1] - side // 2
    x0, y0 = max(left, 0), max(top, 0)
    view = photo[y0 : top + side, x0 : left + side]
    part = np.s_[
        y0 - top : y0 - top + view.shape[0],
        x0 - left : x0 - left + view.shape[1],
    ]
    view[:] = np.rint(view + alpha[part] * (drawn[part].astype(float) - view))
    scale = side / 512
    to_small = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    return turned @ to_small + np.array([[0, 0, left], [0, 0, top]])
