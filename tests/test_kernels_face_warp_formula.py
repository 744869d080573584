"""face_warp: the torch reference against the formula in float64, pixel by pixel."""

import numpy as np
import pytest
import torch

from face_warp_oracle import PLACES, SIZE, cut, keep, matrix_of, paste, picture, tensors
from fr_kernels.face_warp import draw, reference
from fr_kernels.face_warp.op import cut_faces, paste_faces
from scenes import texture

STEEPEST = 570  # grey levels a pixel: a bicubic interpolation of 0 and 255


def _allowed(side: int) -> float:
    """Half a grey level of rounding, and what a coordinate in float32 costs at most in a picture of this side.

    It is rounded as a number from -1 to 1, to 0..2, and to pixels: by 2^-26, 2^-25 and 2^-24 of the side.
    """
    return 0.5 + 1.75 * 2**-24 * side * STEEPEST


@pytest.mark.parametrize(("angle", "scale", "middle"), PLACES)
def test_a_cut_is_the_formula(angle: float, scale: float, middle: tuple[float, float]) -> None:
    frame, matrix = picture(), matrix_of(angle, scale, middle)
    (crop,) = cut_faces(*tensors(frame, matrix), SIZE).double().numpy()
    exact = cut(frame.astype(float), matrix, SIZE)
    assert np.abs(crop - exact).max() <= _allowed(410)


@pytest.mark.parametrize(("angle", "scale", "middle"), PLACES)
def test_a_paste_is_the_formula(angle: float, scale: float, middle: tuple[float, float]) -> None:
    """The restored face is a blurred crop, so that the share of its detail kept is neither 0 nor 1."""
    frame, matrix = picture(), matrix_of(angle, scale, middle)
    exact = frame.astype(float)
    frames, which, maps = tensors(frame, matrix)
    crop = cut_faces(frames, which, maps, SIZE)
    restored = draw.rounded(0.5 * crop + 0.4 * crop.roll(1, 2) + 9)
    before, after = crop[0].double().numpy(), restored[0].double().numpy()
    counts = paste_faces(frames, which, restored, maps, 0.9)
    pasted = frames[0].numpy()
    wanted, radius = paste(exact, after, matrix, 0.9, before)
    assert np.abs(pasted - wanted).max() <= _allowed(410)
    # A pixel whose mask is zero to seven digits may be counted or not.
    assert (radius < 0.9699).sum() <= int(counts[0, 1]) <= (radius < 0.9701).sum()
    np.testing.assert_array_equal(pasted[radius > 0.9701], frame[radius > 0.9701])
    if scale < 1:
        assert 0.05 < keep(before, after) < 0.95
        # With the crop from float64, too, where a rounding of it may have gone the other way.
        own = np.rint(cut(exact, matrix, SIZE))
        assert np.abs(pasted - paste(exact, after, matrix, 0.9, own)[0]).max() <= 1


@pytest.mark.parametrize(("angle", "scale"), [(25, 0.55), (10, 1.6), (170, 5.0)])
def test_crops_of_512_px_are_the_formula(
    angle: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above at the size that is used, where pasting takes no mirror image for what the mask leaves out."""
    frame, matrix = np.tile(picture(), (5, 4, 1)), matrix_of(angle, scale, (824.3, 830.6), 512)
    frames, which, maps = tensors(frame, matrix)
    crop = cut_faces(frames, which, maps, 512)
    before = crop[0].double().numpy()
    assert np.abs(before - cut(frame.astype(float), matrix, 512)).max() <= _allowed(1725)
    restored = draw.rounded(0.5 * crop + 0.4 * crop.roll(1, 2) + 9)
    mirrored = frames.clone()
    counts = paste_faces(frames, which, restored, maps)
    wanted, _ = paste(frame.astype(float), restored[0].double().numpy(), matrix, 1.0, before)
    assert np.abs(frames[0].numpy() - wanted).max() <= _allowed(1725)
    monkeypatch.setattr(reference, "_outside_is_unused", lambda *_: False)
    assert torch.equal(counts, paste_faces(mirrored, which, restored, maps))
    assert torch.equal(frames, mirrored)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 300), (7, 5)])
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 20.0])
def test_frames_of_any_size(shape: tuple[int, int], scale: float) -> None:
    frame = texture(*shape, 3)
    for middle in ((shape[1] / 2, shape[0] / 2), (9000.0, -700.0)):
        matrix = matrix_of(10, scale, middle, 16)
        frames, which, maps = tensors(frame, matrix)
        (crop,) = cut_faces(frames, which, maps, 16).double().numpy()
        exact = cut(frame.astype(float), matrix, 16)
        # Far away the mirror image repeats, and so do the roundings of the coordinates.
        assert np.abs(crop - exact).max() <= (_allowed(300) if middle[0] < 9000 else 1)
        restored = torch.full((1, 16, 16, 3), 200, dtype=torch.uint8)
        counts = paste_faces(frames, which, restored, maps)
        if middle[0] == 9000:
            assert counts.tolist() == [[0, 0]]
            np.testing.assert_array_equal(frames[0].numpy(), frame)
