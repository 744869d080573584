"""Distances between pictures, and bootstrap intervals of paired differences."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import UsageError

Image = NDArray[np.uint8]
RESAMPLES = 10_000


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio of two uint8 [H, W, 3] RGB pictures over all channels, dB.

    Infinite for equal pictures.

    Raises:
        UsageError: shapes differ, or not uint8 [H, W, 3].
    """
    _check(a, b)
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return 10 * float(np.log10(255.0**2 / error)) if error else float("inf")


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two uint8 [H, W, 3] RGB pictures.

    Wang et al. 2004: Gaussian window 11 x 11 of sigma 1.5, K1 = 0.01, K2 = 0.03, windows inside the
    picture only. The mean over R, G and B, as BasicSR does on colour pictures, not on luma.

    Raises:
        UsageError: shapes differ, not uint8 [H, W, 3], or a side below 11.
    """
    _check(a, b)
    if min(a.shape[:2]) < 11:
        raise UsageError(
            f"ssim: got a picture of {a.shape[0]} x {a.shape[1]}, needs 11 x 11 or more"
        )
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(np.mean(above / below))


def _window_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5], np.float64)


def _check(a: Image, b: Image) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.dtype != np.uint8 or b.dtype != np.uint8:
        got = f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
        raise UsageError(f"got {got}, needs two uint8 [H, W, 3] pictures of one shape")


def bootstrap_mean(differences: Sequence[float] | NDArray[np.float64], seed: int) -> Interval:
    """Mean of paired differences [N] with its 95 % percentile interval over 10,000 resamples.

    Raises:
        UsageError: no difference, or one that is not finite.
    """
    values = _finite(differences)
    return _interval(float(values.mean()), values[_resample(len(values), seed)].mean(1))


def bootstrap_ratio(
    numerator: Sequence[float] | NDArray[np.float64],
    denominator: Sequence[float] | NDArray[np.float64],
    seed: int,
) -> Interval:
    """mean(numerator) / mean(denominator) of pairs [N], with its interval as in `bootstrap_mean`.

    Raises:
        UsageError: nothing to compare, lengths differ, or a value is not finite.
    """
    above, below = _finite(numerator), _finite(denominator)
    if len(above) != len(below):
        raise UsageError(f"got {len(above)} and {len(below)} values, needs pairs")
    picks = _resample(len(above), seed)
    ratios = above[picks].mean(1) / below[picks].mean(1)
    return _interval(float(above.mean() / below.mean()), ratios)


def _finite(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise UsageError(f"bootstrap: needs one or more finite numbers, got {array}")
    return array


def _resample(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return Interval(value, low, high)
