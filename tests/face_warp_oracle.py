"""The face warp's formula (head of `fr_kernels/face_warp/reference.py`) in float64, sharing no code with it."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from scenes import face_crop

Array = NDArray[np.float64]
SIZE = 48  # of the crops
# Frame -> crop: angle, scale (0.2: a face five times as large as its crop), middle of the face in `picture`.
MIDDLE, BORDER = (205.3, 170.6), (31.7, 340.2)
PLACES = [
    *[(angle, scale, MIDDLE) for scale in (0.2, 0.37, 0.7, 1.1, 4.0) for angle in (0, 25, 180)],
    (0, 1.0, MIDDLE),
    *[(angle, scale, BORDER) for scale in (0.2, 0.7, 1.5) for angle in (0, 25)],
]


def picture() -> NDArray[np.uint8]:
    """[345, 410, 3]: a photo, and from its middle to the right the steepest picture there is."""
    picture = face_crop("p005-selfie")[90:435, 60:470].copy()
    picture[:, 200:] = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (345, 210, 3))
    return picture


def matrix_of(angle: float, scale: float, middle: tuple[float, float], size: int = SIZE) -> Array:
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack([turn, (size - 1) / 2 - turn @ middle])


def tensors(frame: NDArray[np.uint8], *matrices: Array) -> tuple[torch.Tensor, ...]:
    maps = torch.from_numpy(np.array(matrices, np.float64).reshape(-1, 2, 3))
    return torch.from_numpy(frame.copy())[None], torch.zeros(len(maps), dtype=torch.int32), maps


def _kernel(t: Array) -> Array:
    t, a = np.abs(t), -0.75
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _mirror(i: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    if n == 1:
        return np.zeros_like(i)
    i = np.abs(i) % (2 * n - 2)
    return np.where(i < n, i, 2 * n - 2 - i)


def _bicubic(p: Array, x: Array, y: Array) -> Array:
    total = np.zeros((len(x), p.shape[2]))
    for j in range(-1, 3):
        for i in range(-1, 3):
            u, v = np.floor(x) + i, np.floor(y) + j
            pixel = p[_mirror(v.astype(int), p.shape[0]), _mirror(u.astype(int), p.shape[1])]
            total += (_kernel(x - u) * _kernel(y - v))[:, None] * pixel
    return total


def _shrink(n: int, r: float) -> Array:
    """[round(n r), n]: the j-th row averages the pixels of [j / r, (j + 1) / r)."""
    j = np.arange(round(n * r))[:, None]
    low, high = j / r, np.minimum((j + 1) / r, n)
    share = np.clip(np.minimum(high, np.arange(n) + 1) - np.maximum(low, np.arange(n)), 0, None)
    return share / (high - low)


def _inverse(matrix: Array) -> Array:
    return np.linalg.inv(np.vstack([matrix, (0, 0, 1)]))[:2]


def _draw(p: Array, matrix: Array, x: Array, y: Array) -> Array:
    """D of the picture at output pixels x, y [n]: [n, 3]."""
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    back = _inverse(matrix)
    if scale >= 1:
        return _bicubic(p, *(back @ (x, y, np.ones_like(x))))
    r = min(1.0, max(2 * scale, 2 / min(p.shape[:2])))
    q = p
    if r < 1:
        q = np.tensordot(_shrink(p.shape[0], r), p, 1)
        q = np.tensordot(_shrink(p.shape[1], r), q, (1, 1)).swapaxes(0, 1)
    total = np.zeros((len(x), p.shape[2]))
    for a in (-0.25, 0.25):
        for b in (-0.25, 0.25):
            at = back @ (x + a, y + b, np.ones_like(x))
            total += _bicubic(q, *((at + 0.5) * r - 0.5)) / 4
    return total


def _box(matrix: Array, size: int, frame: Array, margin: int) -> tuple[slice, slice]:
    edge = np.array([-0.5, size - 0.5])
    x, y = _inverse(matrix) @ (edge[[0, 1, 0, 1]], edge[[0, 0, 1, 1]], np.ones(4))
    spans: list[slice] = []
    for at, length in ((y, frame.shape[0]), (x, frame.shape[1])):
        low, high = math.floor(at.min()) - margin, math.ceil(at.max()) + 1 + margin
        low, high = max(low, 0), min(high, length)
        spans.append(slice(min(low, length - 1), max(high, 1)) if margin else slice(low, high))
    return spans[0], spans[1]


def cut(frame: Array, matrix: Array, size: int) -> Array:
    """Not rounded, but clamped."""
    scale = math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    rows, columns = _box(matrix, size, frame, 1 + math.ceil(3 / min(1, 2 * scale)))
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (columns.start, rows.start)
    y, x = np.mgrid[:size, :size].reshape(2, -1).astype(float)
    return _draw(frame[rows, columns], moved, x, y).clip(0, 255).reshape(size, size, 3)


def _radius(x: Array, y: Array, size: int) -> Array:
    u, v = (x + 0.5) * 2 / size - 1, (y + 0.5) * 2 / size - 1
    return (u**4 + v**4) ** 0.25


def _mask(radius: Array) -> Array:
    t = np.clip((0.97 - radius) / 0.2, 0, 1)
    return t * t * (3 - 2 * t)


def _detail(p: Array) -> Array:
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.5**2))
    n, blurred = len(p), np.zeros_like(p)
    for j, b in enumerate(weights / weights.sum()):
        for i, a in enumerate(weights / weights.sum()):
            rows, columns = (_mirror(np.arange(n) + k - 2, n) for k in (j, i))
            blurred += a * b * p[rows][:, columns]
    return p - blurred


def keep(crop: Array, restored: Array) -> float:
    y, x = np.mgrid[: len(crop), : len(crop)].astype(float)
    weighted = _mask(_radius(x, y, len(crop)))[..., None] * _detail(crop)
    energy = (weighted * _detail(crop)).sum()
    return float(np.clip((weighted * _detail(restored)).sum() / energy, 0, 1)) if energy else 1.0


def paste(
    frame: Array, restored: Array, matrix: Array, blend: float, crop: Array
) -> tuple[Array, Array]:
    """The frame, clamped but not rounded, and each pixel's radius in the crop (infinite outside its box)."""
    size, out = len(restored), frame.copy()
    radius = np.full(frame.shape[:2], np.inf)
    rows, columns = _box(matrix, size, frame, 0)
    y, x = np.mgrid[rows, columns].reshape(2, -1).astype(float)
    kept, face = 0.0, restored
    if abs(np.linalg.det(matrix[:, :2])) < 1:
        kept = keep(crop, restored)
        face = restored - kept * crop
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    radius[rows, columns] = _radius(*(matrix @ (x, y, np.ones_like(x))), size).reshape(shape)
    drawn = _draw(face, _inverse(matrix), x, y).reshape(*shape, 3)
    old, mask = frame[rows, columns], _mask(radius[rows, columns])[..., None]
    out[rows, columns] = (old + blend * mask * (drawn - (1 - kept) * old)).clip(0, 255)
    return out, radius
