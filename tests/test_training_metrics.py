import math

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fr_deploy.errors import UsageError
from fr_training.metrics import bootstrap_mean, bootstrap_ratio, psnr, ssim


def pair(seed: int = 0, height: int = 40, width: int = 33) -> tuple[NDArray[np.uint8], ...]:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
    a = (ramp + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
    b = (a + rng.normal(0, 15, a.shape)).clip(0, 255).astype(np.uint8)
    return a, b


def ssim_by_definition(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Wang et al.'s formula with explicit weighted central moments of every 11 x 11 window."""
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(axis, axis) / axis.sum() ** 2
    per_channel = []
    for channel in range(3):
        x, y = (sliding_window_view(i[..., channel].astype(float), (11, 11)) for i in (a, b))
        mx, my = ((v * weight).sum((2, 3), keepdims=True) for v in (x, y))
        vx, vy, cov = (
            (weight * p * q).sum((2, 3))
            for p, q in ((x - mx,) * 2, (y - my,) * 2, (x - mx, y - my))
        )
        mx, my = mx[..., 0, 0], my[..., 0, 0]
        luminance = (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
        structure = (2 * cov + 58.5225) / (vx + vy + 58.5225)
        per_channel.append((luminance * structure).mean())
    return float(np.mean(per_channel))


@pytest.mark.parametrize("seed", range(3))
def test_ssim_is_the_formula(seed: int) -> None:
    a, b = pair(seed)
    assert ssim(a, b) == pytest.approx(ssim_by_definition(a, b), abs=1e-9)
    assert ssim(a, b) == pytest.approx(ssim(b, a), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


def test_ssim_of_flat_pictures_has_a_closed_form() -> None:
    a, b = (np.full((16, 16, 3), value, np.uint8) for value in (100, 120))
    expected = (2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_psnr_against_hand_computed_values() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert psnr(a, a + np.uint8(255)) == pytest.approx(0)
    one = a.copy()
    one[0, 0, 0] = 12  # squared error 144 over 48 values = 3
    assert psnr(a, one) == psnr(one, a) == pytest.approx(10 * math.log10(65025 / 3))
    assert psnr(a, a) == math.inf


def test_pictures_that_cannot_be_compared_are_refused() -> None:
    a, _ = pair()
    for metric in (psnr, ssim):
        with pytest.raises(UsageError, match="one shape"):
            metric(a, a[:-1])
        with pytest.raises(UsageError, match="needs two uint8"):
            metric(a, a.astype(np.float32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="11 x 11 or more"):
        ssim(a[:10], a[:10])


def test_bootstrap_of_two_values_is_the_binomial() -> None:
    # 20 draws of 0 or 1: the mean's quantiles are Binomial(20, 1/2) / 20, here 6/20 and 14/20
    values = [0.0] * 10 + [1.0] * 10
    mean, low, high = bootstrap_mean(values, seed=0)
    assert (mean, low, high) == (0.5, pytest.approx(0.3), pytest.approx(0.7))


def test_bootstrap_agrees_with_the_normal_interval_and_its_seed() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    mean, low, high = bootstrap_mean(values, seed=1)
    half = 1.96 * values.std() / 20
    # an end of the interval has a Monte-Carlo error of about 3 % of the standard error
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    assert bootstrap_mean(values, seed=1) == (mean, low, high)
    assert bootstrap_mean(values, seed=2) != (mean, low, high)


def test_bootstrap_ratio_resamples_pairs() -> None:
    below = np.random.default_rng(0).uniform(0.1, 1, 50)
    value, low, high = bootstrap_ratio(0.8 * below, below, seed=0)
    # exact pairs: every resample has the same ratio; unpaired resampling would spread it by 10 %
    assert (value, low, high) == pytest.approx((0.8, 0.8, 0.8), abs=1e-12)
    noisy = 0.8 * below + np.random.default_rng(1).normal(0, 0.1, 50)
    value, low, high = bootstrap_ratio(noisy, below, seed=0)
    assert low < value < high
    assert value == pytest.approx(noisy.sum() / below.sum())


def test_bootstrap_refuses_nothing_and_infinity() -> None:
    for bad in ([], [1.0, math.inf], [math.nan]):
        with pytest.raises(UsageError, match="finite"):
            bootstrap_mean(bad, 0)
    with pytest.raises(UsageError, match="needs pairs"):
        bootstrap_ratio([1.0], [1.0, 2.0], 0)
