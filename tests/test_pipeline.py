"""One photo through the pipeline, with a restorer whose effect can be recognised anywhere."""

import numpy as np
import pytest

import odd_inputs as odd
from fr_deploy.errors import ImageError, UsageError
from fr_deploy.faces import Face, align_faces
from fr_deploy.pipeline import RestoreOptions, restore_photo, select_faces

LANDMARKS = np.array([(38, 47), (63, 47), (51, 62), (40, 74), (62, 74)], np.float32)


def face(x: float, y: float, scale: float = 1.0) -> Face:
    landmarks = (LANDMARKS * scale + [x, y]).astype(np.float32)
    box = np.concatenate([landmarks.min(0) - 12 * scale, landmarks.max(0) + 12 * scale])
    return Face(box.astype(np.float32), landmarks, 0.99)


class Found:
    """A detector that knows where the faces are, and remembers what it was asked."""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)
        self.asked: dict[str, object] = {}

    def detect(self, rgb, **asked):
        self.asked = asked
        return self.faces


class Invert:
    """A restorer that inverts, and remembers the size of each batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, crops):
        assert crops.dtype == np.uint8
        assert crops.shape[1:] == (512, 512, 3)
        self.batches.append(len(crops))
        return 255 - crops


def photo() -> np.ndarray:
    y, x = np.mgrid[0:240, 0:360]
    return np.stack([x // 2 + 20, y // 2 + 60, (x + y) // 4], -1).astype(np.uint8)


def at_nose(rgb: np.ndarray, face: Face, scale: float = 1.0) -> np.ndarray:
    x, y = ((face.landmarks[2] + 0.5) * scale - 0.5).round().astype(int)
    return rgb[y, x].astype(int)


def test_faces_change_and_nothing_else_does():
    rgb, restorer, found = photo(), Invert(), Found(face(20, 30), face(220, 80))
    before = rgb.copy()
    result = restore_photo(rgb, found, restorer, RestoreOptions(min_face=30, rotations=(0, 90)))
    np.testing.assert_array_equal(rgb, before)
    assert restorer.batches == [2]
    assert found.asked == {"min_face": 30, "rotations": (0, 90)}
    assert len(result.faces) == len(result.matrices) == len(result.crops) == 2
    np.testing.assert_array_equal(result.restored, 255 - result.crops)
    np.testing.assert_array_equal(result.crops, align_faces(rgb, found.faces)[0])
    for one in found.faces:
        assert np.abs(at_nose(result.rgb, one) - (255 - at_nose(rgb, one))).max() <= 2
    corners = result.rgb[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_array_equal(corners, rgb[[0, 0, -1, -1], [0, -1, 0, -1]])
    np.testing.assert_array_equal(result.rgb[:, 165:185], rgb[:, 165:185])  # between the two


def test_no_face_leaves_the_photo_alone_and_never_runs_the_model():
    restorer = Invert()
    result = restore_photo(photo(), Found(), restorer)
    np.testing.assert_array_equal(result.rgb, photo())
    assert result.restored.shape == (0, 512, 512, 3)
    assert restorer.batches == []


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_blend_mixes(blend):
    one = face(120, 60)
    result = restore_photo(photo(), Found(one), Invert(), RestoreOptions(blend=blend))
    old = at_nose(photo(), one)
    expected = old * (1 - blend) + (255 - old) * blend
    assert np.abs(at_nose(result.rgb, one) - expected).max() <= 2


@pytest.mark.parametrize("scale", [2.0, 1.5, 3.7])
def test_enlarging_puts_the_face_in_its_place(scale):
    """With the identity in place of a model, the face must land where the enlarged photo has it."""
    one = face(120, 60)
    result = restore_photo(photo(), Found(one), lambda crops: crops, RestoreOptions(upscale=scale))
    plain = restore_photo(photo(), Found(), lambda crops: crops, RestoreOptions(upscale=scale)).rgb
    assert result.rgb.shape == plain.shape == (round(240 * scale), round(360 * scale), 3)
    # A shift of half a pixel would show as 0.25 to 0.5 levels on this ramp, everywhere on the face.
    x, y = (one.landmarks[2] * scale).astype(int)
    part = np.s_[y - 20 : y + 20, x - 20 : x + 20]
    assert abs((result.rgb[part].astype(float) - plain[part]).mean()) < 0.1
    inverted = restore_photo(photo(), Found(one), Invert(), RestoreOptions(upscale=scale))
    old = at_nose(plain, one, scale)
    assert np.abs(at_nose(inverted.rgb, one, scale) - (255 - old)).max() <= 2


def test_selection():
    left, big, middle = face(0, 0), face(200, 60, 1.3), face(130, 70, 0.9)
    faces = [left, big, middle]
    assert select_faces(faces, "all", (240, 360)) == faces
    assert select_faces(faces, "largest", (240, 360)) == [big]
    assert select_faces(faces, "center", (240, 360)) == [middle]
    assert select_faces([], "largest", (240, 360)) == []
    result = restore_photo(photo(), Found(*faces), Invert(), RestoreOptions(faces="largest"))
    assert result.faces == (big,)


@pytest.mark.parametrize("shape", [(512, 512), (100, 60), (37, 91), (1, 1), (700, 900)])
@pytest.mark.parametrize("upscale", [1.0, 2.5])
def test_aligned_keeps_proportions_and_size(shape, upscale):
    rgb = np.ascontiguousarray(np.broadcast_to(odd.gradient(*shape) // 2 + 50, (*shape, 3)))
    options = RestoreOptions(aligned=True, upscale=upscale)
    result = restore_photo(rgb, None, Invert(), options)
    assert result.rgb.shape == (round(shape[0] * upscale), round(shape[1] * upscale), 3)
    assert result.faces == ()
    assert len(result.restored) == 1
    middle = result.rgb[result.rgb.shape[0] // 2, result.rgb.shape[1] // 2].astype(int)
    assert np.abs(middle - (255 - rgb[shape[0] // 2, shape[1] // 2].astype(int))).max() <= 12


def test_aligned_512_is_exactly_what_the_model_gives():
    rgb = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    result = restore_photo(rgb, None, Invert(), RestoreOptions(aligned=True))
    np.testing.assert_array_equal(result.rgb, 255 - rgb)


def test_aligned_is_padded_with_edge_pixels_not_stretched():
    rgb = np.zeros((512, 256, 3), np.uint8)
    rgb[:, 0], rgb[:, -1] = 40, 80
    crop = restore_photo(rgb, None, Invert(), RestoreOptions(aligned=True)).crops[0]
    assert (crop[:, :128] == 40).all()
    assert (crop[:, 384:] == 80).all()


@pytest.mark.parametrize(
    "options", [{"upscale": 0.5}, {"upscale": 5}, {"blend": -0.1}, {"blend": 2}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="allowed are"):
        RestoreOptions(**options)


def test_too_large_a_result_is_refused_before_any_work():
    rgb = np.broadcast_to(np.zeros(3, np.uint8), (4000, 4000, 3))
    with pytest.raises(ImageError) as caught:
        restore_photo(rgb, Found(), Invert(), RestoreOptions(upscale=4))
    assert caught.value.reason == "too_large"


def test_a_detector_is_needed_unless_aligned():
    with pytest.raises(UsageError, match="detector"):
        restore_photo(photo(), None, Invert())
