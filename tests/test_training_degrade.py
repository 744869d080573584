import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from fr_deploy.errors import UsageError
from fr_training.degrade import (
    DEGRADATIONS,
    OPERATORS,
    blur,
    degrade,
    draw,
    gaussian_kernel,
    jpeg_round_trip,
    lookup,
)
from tests_support import psnr

LEVELS = list(DEGRADATIONS)


def picture(height: int = 160, width: int = 160, seed: int = 0) -> NDArray[np.uint8]:
    """Structure at every scale: octaves of coloured noise, about 1 / f as in a photograph."""
    rng = np.random.default_rng(seed)
    out = np.full((height, width, 3), 128.0)
    for octave in range(1, 7):
        coarse = rng.normal(0, 60 / 1.6**octave, (2**octave, 2**octave, 3))
        out += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return out.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("level", LEVELS)
def test_same_arguments_same_bytes_and_input_untouched(level: str) -> None:
    image = picture()
    before = image.copy()
    first = degrade(image, level, 7)
    np.random.default_rng().random()
    assert np.array_equal(first, degrade(image, level, 7))
    assert np.array_equal(image, before)
    assert not np.array_equal(first, degrade(image, level, 8))
    assert first.shape == image.shape
    assert first.dtype == np.uint8


@pytest.mark.parametrize("level", LEVELS)
def test_draws_fill_their_ranges_and_stay_inside(level: str) -> None:
    ranges = DEGRADATIONS[level]
    drawn = [d for seed in range(1500) for d in draw(level, np.random.default_rng(seed))]
    assert len(drawn) == 1500 * ranges.passes
    values = {
        "sigma": [s for d in drawn for s in d.sigma],
        "down": [d.down for d in drawn],
        "noise": [d.noise for d in drawn],
        "jpeg": [d.jpeg for d in drawn],
    }
    for name, got in values.items():
        low, high = getattr(ranges, name)
        # 1,500 uniform draws all miss one end's 2 % with probability 0.98^1500 = 7e-14
        margin = 0.02 * (high - low)
        assert low <= min(got) <= low + margin, name
        assert high - margin <= max(got) <= high, name
        assert np.mean(got) == pytest.approx((low + high) / 2, abs=0.04 * (high - low)), name
    share = np.mean([d.sigma[0] != d.sigma[1] for d in drawn])
    assert share == pytest.approx(ranges.anisotropic, abs=0.07)


def test_only_flipnet_shuffles_and_only_its_second_pass() -> None:
    for level in LEVELS:
        passes = [draw(level, np.random.default_rng(seed)) for seed in range(400)]
        assert all(p[0].order == OPERATORS for p in passes)
        orders = {p[1].order for p in passes if len(p) > 1}
        assert len(orders) == (24 if level == "flipnet" else 0)


def test_levels_are_ordered_by_the_damage_they_do() -> None:
    images = [picture(256, 256, seed) for seed in range(16)]
    mean = {
        level: np.mean([psnr(x, degrade(x, level, i)) for i, x in enumerate(images)])
        for level in ("mild", "vqfr-v1", "vqfr-v2", "flipnet")
    }
    assert mean["mild"] > mean["vqfr-v1"] > mean["vqfr-v2"] > mean["flipnet"], mean


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 200), (161, 97)])
@pytest.mark.parametrize("level", ["mild", "vqfr-v2", "flipnet"])
def test_odd_and_tiny_sizes_are_kept(shape: tuple[int, int], level: str) -> None:
    for seed in range(6):
        assert degrade(picture(*shape), level, seed).shape == (*shape, 3)


def test_gray_picture_gains_colour_only_from_noise() -> None:
    gray = np.repeat(picture()[..., :1], 3, axis=2)
    quiet = jpeg_round_trip(blur(gray, (3.0, 1.0), 0.4, 41), 50)
    assert np.ptp(quiet.astype(int), axis=2).max() <= 1
    assert np.ptp(degrade(gray, "vqfr-v2", 3).astype(int), axis=2).max() > 1


def test_channels_keep_their_order() -> None:
    flat = np.zeros((64, 64, 3), np.uint8) + np.array([200, 120, 40], np.uint8)
    mean = degrade(flat, "mild", 0).reshape(-1, 3).mean(0)
    assert mean == pytest.approx([200, 120, 40], abs=3)


def test_separable_and_full_kernel_agree() -> None:
    image = picture()
    full = cv2.filter2D(image, -1, gaussian_kernel((8.0, 8.0), 0.3, 41))
    assert np.abs(full.astype(int) - blur(image, (8.0, 8.0), 0.3, 41)).max() <= 1


def test_kernel_has_the_sigmas_and_the_direction_asked_for() -> None:
    kernel = gaussian_kernel((4.0, 2.0), 0.6, 41).astype(np.float64)
    axis = np.arange(41) - 20
    x, y = np.meshgrid(axis, axis)
    covariance = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    along = np.array([np.cos(0.6), np.sin(0.6)])
    across = np.array([-np.sin(0.6), np.cos(0.6)])
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.sqrt(along @ covariance @ along) == pytest.approx(4, rel=0.01)
    assert np.sqrt(across @ covariance @ across) == pytest.approx(2, rel=0.01)


def test_errors_name_the_choices() -> None:
    with pytest.raises(UsageError, match=r"'harsh' is unknown; choose from mild, vqfr-v1"):
        lookup("harsh")
    with pytest.raises(UsageError, match=r"got uint8 \[8, 8\], needs uint8 \[H, W, 3\]"):
        degrade(np.zeros((8, 8), np.uint8), "mild", 0)
    with pytest.raises(UsageError, match="got float32"):
        degrade(np.zeros((8, 8, 3), np.float32), "mild", 0)  # pyright: ignore[reportArgumentType]
