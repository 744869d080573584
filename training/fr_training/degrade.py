"""Blind face degradations: y = { [ (x * k) down_s + n ]_JPEG_q } back up to the size of x.

The ranges are those the papers and their public code state. Where they are silent the choice is
ours: everything stays uint8, so each operator clips and rounds; resizes are bilinear without an
antialias filter, as GFPGAN's data set does them; JPEG is 4:2:0.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import UsageError

Image = NDArray[np.uint8]
OPERATORS = ("blur", "down", "noise", "jpeg")  # the order inside eq 9


@dataclass(frozen=True)
class Degradation:
    """The ranges one level draws from, uniformly.

    Attributes:
        sigma: standard deviation of the Gaussian blur, pixels of the full-size image.
        down: divisor of the side; below 1 enlarges.
        noise: standard deviation of white noise, independent in R, G and B, on the 0-255 scale.
        jpeg: quality, both ends included.
        kernel: side of the blur kernel, pixels; it cuts a Gaussian wider than about kernel / 6.
        anisotropic: probability of a rotated kernel with two unlike sigmas.
        passes: how often the chain runs; from the second pass on its operators are shuffled.
    """

    sigma: tuple[float, float]
    down: tuple[float, float]
    noise: tuple[float, float]
    jpeg: tuple[int, int]
    kernel: int = 41
    anisotropic: float = 0.5
    passes: int = 1


# fmt: off
DEGRADATIONS: dict[str, Degradation] = {
    #                               sigma        down        noise    jpeg
    "mild":             Degradation((0.2, 1.5),  (4, 4),     (0, 5),  (60, 90), 11, anisotropic=0),
    "vqfr-v1":          Degradation((0.1, 10.0), (0.8, 8),   (0, 20), (60, 100)),
    "vqfr-v2":          Degradation((1.0, 15.0), (1, 30),    (0, 20), (30, 90)),
    "codeformer-small": Degradation((0.1, 10.0), (1, 12),    (0, 15), (60, 100)),
    "codeformer-large": Degradation((1.0, 15.0), (4, 30),    (0, 20), (30, 80)),
    "osediff-face":     Degradation((1.0, 15.0), (1, 30),    (0, 20), (30, 100)),
    "daefr":            Degradation((0.1, 10.0), (0.8, 8),   (0, 20), (60, 100)),
    "flipnet":          Degradation((0.1, 15.0), (0.8, 32),  (0, 20), (30, 95), passes=2),
}
# fmt: on


@dataclass(frozen=True)
class Drawn:
    """The numbers of one pass; the first sigma lies along `angle` (radians), the second across."""

    sigma: tuple[float, float]
    angle: float
    down: float
    noise: float
    jpeg: int
    order: tuple[str, ...] = OPERATORS


def degrade(image: Image, level: str, seed: int) -> Image:
    """Degrade one picture; a pure function of its three arguments.

    Draws from `np.random.default_rng(seed)`: first the parameters (see `draw`), then, each time a
    noise operator runs, its field `standard_normal([h, w, 3], float32)`, channels in order B, G, R.

    Args:
        image: uint8 [H, W, 3] RGB.
        level: a key of `DEGRADATIONS`.
        seed: non-negative. Levels share the draws behind it: a seed is equally harsh in each.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        UsageError: unknown level, or not a colour uint8 picture.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UsageError(
            f"degrade: got {image.dtype} {list(image.shape)}, needs uint8 [H, W, 3] RGB"
        )
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    out = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    kernel = lookup(level).kernel
    for drawn in draw(level, rng):
        for name in drawn.order:
            out = _apply(name, out, drawn, kernel, rng)
        out = _resize(out, width, height)
    return np.asarray(cv2.cvtColor(out, cv2.COLOR_BGR2RGB), np.uint8)


def draw(level: str, rng: np.random.Generator) -> list[Drawn]:
    """Draw the parameters of every pass.

    Per pass, in this order, whether or not they come to be used: anisotropic?, two sigmas, angle,
    down, noise, JPEG quality, and from the second pass on a permutation of the four operators.
    """
    ranges = lookup(level)
    return [_draw_pass(ranges, rng, shuffled=i > 0) for i in range(ranges.passes)]


def lookup(level: str) -> Degradation:
    """The ranges of a level.

    Raises:
        UsageError: unknown level.
    """
    if level not in DEGRADATIONS:
        raise UsageError(f"degradation {level!r} is unknown; choose from {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[level]


def _draw_pass(ranges: Degradation, rng: np.random.Generator, *, shuffled: bool) -> Drawn:
    anisotropic = rng.random() < ranges.anisotropic
    first, second = rng.uniform(*ranges.sigma, size=2).tolist()
    angle, down, noise = rng.uniform(
        [-np.pi, ranges.down[0], ranges.noise[0]], [np.pi, ranges.down[1], ranges.noise[1]]
    ).tolist()
    jpeg = int(rng.integers(ranges.jpeg[0], ranges.jpeg[1], endpoint=True))
    order = tuple(OPERATORS[i] for i in rng.permutation(4)) if shuffled else OPERATORS
    return Drawn((first, second if anisotropic else first), angle, down, noise, jpeg, order)


def _apply(name: str, image: Image, drawn: Drawn, kernel: int, rng: np.random.Generator) -> Image:
    match name:
        case "blur":
            return blur(image, drawn.sigma, drawn.angle, kernel)
        case "down":
            height, width = image.shape[:2]
            return _resize(image, int(width / drawn.down), int(height / drawn.down))
        case "noise":
            field = rng.standard_normal(image.shape, np.float32) * np.float32(drawn.noise)
            return np.asarray(cv2.add(image, field, dtype=cv2.CV_8U), np.uint8)  # clips and rounds
        case _:
            return jpeg_round_trip(image, drawn.jpeg)


def _resize(image: Image, width: int, height: int) -> Image:
    size = (max(1, width), max(1, height))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def blur(image: Image, sigma: tuple[float, float], angle: float, kernel: int) -> Image:
    """Blur with a Gaussian cut to `kernel` x `kernel`; equal sigmas take the separable road."""
    if sigma[0] == sigma[1]:
        return np.asarray(cv2.GaussianBlur(image, (kernel, kernel), sigma[0]), np.uint8)
    return np.asarray(cv2.filter2D(image, -1, gaussian_kernel(sigma, angle, kernel)), np.uint8)


def gaussian_kernel(sigma: tuple[float, float], angle: float, kernel: int) -> NDArray[np.float32]:
    """A rotated Gaussian kernel, float32 [kernel, kernel], of sum 1."""
    axis = np.arange(kernel, dtype=np.float64) - kernel // 2
    x, y = axis[None, :], axis[:, None]
    u = (np.cos(angle) * x + np.sin(angle) * y) / sigma[0]
    v = (np.cos(angle) * y - np.sin(angle) * x) / sigma[1]
    weight = np.exp(-0.5 * (u * u + v * v))
    return (weight / weight.sum()).astype(np.float32)


def jpeg_round_trip(image: Image, quality: int) -> Image:
    """Encode uint8 [H, W, 3] BGR as JPEG 4:2:0 and decode it again."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, data = cv2.imencode(".jpg", image, options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
