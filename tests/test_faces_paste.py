"""Pasting touches the face alone, costs what the face costs, and leaves no seam."""

import tracemalloc

import cv2
import numpy as np
import pytest

from fr_deploy.errors import UsageError
from fr_deploy.faces import paste_face, scaled_matrix, upscale_photo
from fr_deploy.faces.geometry import Affine, apply, cut, invert, scaling, tensor_of, translation
from fr_deploy.faces.paste import PasteStats
from fr_kernels.face_warp import reference
from scenes import Placed, compose_scene, face_crop, face_weight, texture

Image = np.ndarray


def _scene(side: int, angle: float = 17, margin: int = 120) -> tuple[Image, Affine]:
    """A photo with one face of a crop `side` px wide, and the map photo -> crop."""
    size = round(side * 1.3) + margin
    placed = Placed(face_crop("p009-selfie"), side, (size // 2, size // 2), angle)
    photo, (to_photo,) = compose_scene(texture(size, size, 7), [placed])
    return photo, invert(to_photo)


def _gradient(photo: Image, where: Image) -> float:
    grey = photo.mean(2, dtype=np.float32)
    return float(np.hypot(*np.gradient(grey))[where].mean())


@pytest.mark.parametrize("side", [60, 300, 700])
def test_bytes_outside_the_mask_are_equal(side):
    photo, matrix = _scene(side)
    pasted = photo.copy()
    stats = paste_face(pasted, np.full((512, 512, 3), 255, np.uint8), matrix)
    changed = (pasted != photo).any(2)
    mask = face_weight(photo, matrix)
    assert changed.any()
    assert not changed[mask == 0].any()
    assert stats.pixels_written == int((mask > 0).sum())
    assert (pasted[mask > 0.999] == 255).all()


@pytest.mark.parametrize("side", [100, 600])
def test_cost_follows_the_face_not_the_photo(side):
    face, matrix = _scene(side)
    size = len(face)
    stats, results = [], []
    for height, width, x, y in ((1000, 1000, 20, 10), (4000, 6000, 4520, 2410)):
        photo = np.full((height, width, 3), 90, np.uint8)
        photo[y : y + size, x : x + size] = face
        moved = matrix.copy()
        moved[:, 2] -= matrix[:, :2] @ (x, y)
        stats.append(paste_face(photo, face_crop("p005-selfie"), moved))
        results.append(photo[y : y + size, x : x + size])
    assert stats[0] == stats[1]
    assert 0.3 * side**2 < stats[0].pixels_written < side**2
    assert stats[0].pixels_read < (2.2 if side < 512 else 4.2) * (side + 2) ** 2
    assert np.abs(results[0].astype(int) - results[1]).max() <= 1


def test_a_face_of_up_to_512_px_pasted_back_as_it_was_hardly_changes():
    """It is resampled twice; the bound is twice the measured 0.7 of 255."""
    for side in (150, 300, 512):
        photo, matrix = _scene(side)
        pasted = photo.copy()
        paste_face(pasted, cut(photo, matrix, 512), matrix)
        inside = face_weight(photo, matrix) > 0
        assert np.abs(pasted.astype(int) - photo)[inside].mean() < 1.4


@pytest.mark.parametrize("side", [560, 900])
def test_a_larger_face_pasted_back_as_it_was_does_not_change(side):
    photo, matrix = _scene(side)
    pasted = photo.copy()
    paste_face(pasted, cut(photo, matrix, 512), matrix)
    np.testing.assert_array_equal(pasted, photo)


@pytest.mark.parametrize("side", [80, 300, 900])
@pytest.mark.parametrize("other", [False, True], ids=["itself", "smooth-and-brighter"])
def test_no_seam(side, other):
    """Along the outer half of the rim the photo is not steeper than 1.1 times what it was."""
    photo, matrix = _scene(side)
    restored = cut(photo, matrix, 512)
    if other:
        restored = cv2.add(cv2.GaussianBlur(restored, (0, 0), 1.5), (12, 12, 12, 0))
    pasted = photo.copy()
    paste_face(pasted, restored, matrix)
    mask = face_weight(photo, matrix)
    rim = (mask > 0) & (mask < 0.5)
    assert _gradient(pasted, rim) <= 1.1 * _gradient(photo, rim)


def test_on_a_flat_photo_the_rim_is_soft():
    """A step of 40 grey values spreads over a tenth of the side: 2 per pixel (and a half by rounding)."""
    photo = np.full((400, 400, 3), 100, np.uint8)
    paste_face(photo, np.full((512, 512, 3), 140, np.uint8), scaling(512 / 300) @ np.eye(3))
    assert photo.max() == 140
    assert np.hypot(*np.gradient(photo[..., 0].astype(float))).max() <= 2.5


def test_blend():
    photo, matrix = _scene(300)
    white = np.full((512, 512, 3), 255, np.uint8)
    none, half, full = photo.copy(), photo.copy(), photo.copy()
    paste_face(none, white, matrix, blend=0)
    paste_face(half, white, matrix, blend=0.5)
    paste_face(full, white, matrix)
    np.testing.assert_array_equal(none, photo)
    assert np.abs(half - (photo.astype(float) + full) / 2).max() <= 1
    for wrong in (-0.1, 1.5):
        with pytest.raises(UsageError, match="blend is"):
            paste_face(photo, white, matrix, blend=wrong)


@pytest.mark.parametrize("side", [200, 512, 800])
def test_the_paste_lands_where_the_matrix_says(side):
    """A blob drawn in the crop appears at its place in the photo, to a twentieth of a pixel."""
    y, x = np.mgrid[:512, :512]
    blob = 200 * np.exp(-((x - 240.7) ** 2 + (y - 270.2) ** 2) / (2 * 25**2))
    restored = np.repeat(np.rint(blob).astype(np.uint8)[..., None], 3, 2)
    _, matrix = _scene(side)
    photo = np.zeros((round(side * 1.3) + 120, round(side * 1.3) + 120, 3), np.uint8)
    paste_face(photo, restored, matrix)
    grey = photo[..., 0].astype(float)
    at = [(grey * axis).sum() / grey.sum() for axis in np.mgrid[: len(grey), : len(grey)][::-1]]
    np.testing.assert_allclose(at, apply(invert(matrix), np.array((240.7, 270.2))), atol=0.05)


def test_a_face_cut_by_the_border():
    photo, matrix = _scene(300)
    part = np.ascontiguousarray(photo[:, 200:])
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (200, 0)
    white = np.full((512, 512, 3), 255, np.uint8)
    whole = photo.copy()
    paste_face(whole, white, matrix)
    stats = paste_face(part, white, moved)
    assert np.abs(part.astype(int) - whole[:, 200:]).max() <= 1
    assert stats.pixels_written == int((face_weight(photo, matrix)[:, 200:] > 0).sum())


def test_a_face_outside_the_photo():
    photo = texture(60, 60)
    before = photo.copy()
    far = translation(-900.0, -900.0)
    assert paste_face(photo, np.zeros((512, 512, 3), np.uint8), far) == PasteStats(0, 0)
    np.testing.assert_array_equal(photo, before)


def test_the_mask_of_the_crop_is_that_of_the_photo():
    crop = np.zeros((512, 512, 3), np.uint8)
    np.testing.assert_allclose(
        reference.face_mask(512).numpy(), face_weight(crop, np.eye(2, 3)), atol=1e-6
    )


def test_a_photo_in_any_memory_layout():
    """Rows and columns backwards, every other pixel, or turned: as a copy in order."""
    photo, matrix = _scene(120)
    restored = face_crop("p005-selfie")
    expected = photo.copy()
    stats = paste_face(expected, restored, matrix)
    twice = np.repeat(np.repeat(photo, 2, 0), 2, 1)
    layouts = [
        photo[::-1, ::-1].copy()[::-1, ::-1],
        twice[::2, ::2],
        photo.swapaxes(0, 1).copy().swapaxes(0, 1),
    ]
    for view in layouts:
        np.testing.assert_array_equal(cut(view, matrix, 512), cut(photo, matrix, 512))
        assert paste_face(view, restored[:, ::-1].copy()[:, ::-1], matrix) == stats
        np.testing.assert_array_equal(view, expected)


def test_of_a_large_photo_that_torch_cannot_share_only_the_face_is_copied():
    """A view that turns BGR into RGB: 72 MB, and a face of 0.1."""
    photo = np.full((4000, 6000, 3), 90, np.uint8)[..., ::-1]
    matrix = scaling(512 / 180) @ np.vstack([translation(-4520, -2410), (0, 0, 1)])
    tracemalloc.start()
    try:
        crop = cut(photo, matrix, 512)
        paste_face(photo, 255 - crop, matrix)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()
    assert photo[2500, 4610].tolist() == [165] * 3


def test_a_read_only_photo():
    photo, matrix = _scene(120)
    crop = cut(photo, matrix, 512)
    photo.flags.writeable = False
    np.testing.assert_array_equal(cut(photo, matrix, 512), crop)
    with pytest.raises(ValueError, match="read-only"):
        paste_face(photo, crop, matrix)


def _kept_detail(crop: Image, restored: Image) -> float:
    return reference.kept_detail(tensor_of(crop), tensor_of(restored))


def test_fine_detail_is_kept_as_far_as_the_restorer_kept_it():
    crop = face_crop("p005-selfie")
    noise = np.random.default_rng(0).normal(0, 25, crop.shape)
    noisy = (crop + noise).clip(0, 255).astype(np.uint8)
    assert _kept_detail(crop, crop) == 1
    assert _kept_detail(np.full_like(crop, 9), crop) == 1
    assert _kept_detail(noisy, crop) < 0.25
    assert _kept_detail(crop, cv2.GaussianBlur(crop, (0, 0), 4)) < 0.1


def test_a_large_noisy_face_is_rid_of_its_noise_and_a_clean_one_keeps_its_detail():
    clean, matrix = _scene(1000)
    noise = np.random.default_rng(0).normal(0, 20, clean.shape)
    noisy = (clean + noise).clip(0, 255).astype(np.uint8)
    inside = face_weight(clean, matrix) > 0.99
    pasted = noisy.copy()
    paste_face(pasted, cut(clean, matrix, 512), matrix)
    before, after = (np.square(x.astype(float) - clean)[inside].mean() for x in (noisy, pasted))
    assert after < 0.15 * before


@pytest.mark.parametrize("scale", [1.7, 2, 3])
def test_upscaling_keeps_half_pixel_centres(scale):
    """The crop of the enlarged photo is the crop of the photo; not so by facexlib's shift."""
    photo, matrix = _scene(300)
    big = upscale_photo(photo, scale)
    assert big.shape[:2] == tuple(round(n * scale) for n in photo.shape[:2])
    exact = scaled_matrix(matrix, scale)
    facexlib = invert(invert(matrix) * scale + [[0, 0, 0.5 * scale], [0, 0, 0.5 * scale]])
    crop = cut(photo, matrix, 512).astype(float)
    middle = np.s_[100:412, 100:412]
    errors = [np.abs(cut(big, m, 512)[middle] - crop[middle]).mean() for m in (exact, facexlib)]
    assert errors[0] < 0.5 * errors[1]


def test_a_photo_is_never_reduced():
    with pytest.raises(UsageError, match=r"scale is 0\.5"):
        upscale_photo(texture(8, 8), 0.5)
