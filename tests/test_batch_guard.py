"""The identity guard keeps the largest share of a restored face that is still the same person."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fr_deploy.batch.device import FakeDevice, ModelChoice, ModelDevice
from fr_deploy.batch.guard import GuardedDevice, guarded
from fr_deploy.batch.work import Faces, Restored
from fr_deploy.faces import FaceDetector, FaceEmbedder, deg_dlib
from fr_deploy.images import read_photo
from fr_deploy.pipeline import find_faces
from fr_deploy.settings import RestoreOptions

DEMO = Path(__file__).parents[1] / "assets" / "demo"
BLACK, WHITE = (np.full((1, 512, 512, 3), value, np.uint8) for value in (0, 255))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a core that is shared wait for each other: a face took 5 s, not 0.1."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_brightness(_: Sequence[int], crops: NDArray[np.uint8]) -> list[float]:
    """A face moves by as many degrees as its first pixel is bright."""
    return [float(crop[0, 0, 0]) for crop in crops]


def guard(limit: float, *bright: int) -> Restored:
    """Black faces that were restored to flat ones."""
    crops = np.concatenate([np.full((1, 512, 512, 3), value, np.uint8) for value in bright])
    angles = by_brightness((), crops)
    return guarded(np.zeros_like(crops), Restored(crops, angles, ms=5.0), limit, by_brightness)


def test_each_face_keeps_the_largest_share_within_the_limit() -> None:
    done = guard(60.0, 60, 61, 80, 120, 240, 250)
    assert done.blends == [1.0, 0.75, 0.75, 0.5, 0.25, 0.0]
    assert done.kept == [60.0, 46.0, 60.0, 60.0, 60.0, 0.0]
    assert done.angles == [60.0, 61.0, 80.0, 120.0, 240.0, 250.0]
    assert [crop[5, 5].tolist() for crop in done.crops] == [
        [v] * 3 for v in (60, 46, 60, 60, 60, 0)
    ]
    assert done.ms == 5.0


def test_a_batch_within_the_limit_is_left_as_it_is() -> None:
    crops = np.full((2, 512, 512, 3), 9, np.uint8)
    restored = Restored(crops, [9.0, 9.0])

    def never(*_: object) -> list[float]:
        raise AssertionError

    done = guarded(np.zeros_like(crops), restored, 9.0, never)
    assert done.crops is crops
    assert (done.kept, done.blends) == ([9.0, 9.0], [1.0, 1.0])


def test_what_came_in_is_not_changed() -> None:
    crops = WHITE.copy()
    guarded(BLACK, Restored(crops, [255.0]), 1.0, by_brightness)
    assert (crops == 255).all()


def test_an_angle_that_is_no_number_is_no_proof() -> None:
    def unknown(places: Sequence[int], _: NDArray[np.uint8]) -> list[float]:
        return [float("nan")] * len(places)

    done = guarded(BLACK, Restored(WHITE, [float("nan")]), 90.0, unknown)
    assert (done.blends, done.kept) == ([0.0], [0.0])
    np.testing.assert_array_equal(done.crops, BLACK)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_blend_is_rounded_once(quarters: int) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, 1, 512, 512, 3), dtype=np.uint8)

    def enough(_: Sequence[int], crops: NDArray[np.uint8]) -> list[float]:
        exact = after.astype(float) * quarters / 4 + before.astype(float) * (4 - quarters) / 4
        same = np.abs(crops - exact).max() <= 0.5
        return [0.0 if same else 9.0]

    done = guarded(before, Restored(after, [9.0]), 1.0, enough)
    assert done.blends == [quarters / 4]


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """Three people of the demo photos, aligned."""
    detector = FaceDetector(threads=1)
    names = ("astronaut.png", "grace-hopper.jpg", "selfie.jpg")
    found = [find_faces(read_photo(DEMO / n).rgb, detector, RestoreOptions()) for n in names]
    return np.concatenate([one.crops[:1] for one in found])


def moved(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> list[float]:
    embedder = FaceEmbedder()
    return deg_dlib(embedder.embed(before), embedder.embed(after)).tolist()


def test_a_negative_is_somebody_else(faces: NDArray[np.uint8]) -> None:
    device = GuardedDevice(FakeDevice(0), 12.0, "cpu")
    device.setup()
    done = device(Faces(faces))
    assert done.angles is not None
    assert done.blends is not None
    assert done.kept is not None
    np.testing.assert_allclose(done.angles, moved(faces, 255 - faces), atol=0.01)
    assert min(done.angles) > 12
    assert max(done.blends) < 1
    np.testing.assert_allclose(done.kept, moved(faces, done.crops), atol=0.01)
    assert max(done.kept) <= 12


def test_measuring_changes_nothing(faces: NDArray[np.uint8]) -> None:
    device = GuardedDevice(FakeDevice(0), None, "cpu", one_by_one=True)
    device.setup()
    done = device(Faces(faces))
    np.testing.assert_array_equal(done.crops, 255 - faces)
    assert (done.kept, done.blends) == (None, None)
    np.testing.assert_allclose(np.array(done.angles), moved(faces, 255 - faces), atol=0.01)


def test_one_by_one_an_angle_does_not_depend_on_the_batch(faces: NDArray[np.uint8]) -> None:
    device = GuardedDevice(FakeDevice(0), 12.0, "cpu", one_by_one=True)
    device.setup()
    together = device(Faces(faces))
    alone = [device(Faces(faces[i : i + 1])) for i in range(len(faces))]
    assert together.angles == [one.angles[0] for one in alone if one.angles]
    np.testing.assert_array_equal(together.crops, np.concatenate([one.crops for one in alone]))


@pytest.mark.slow
def test_the_embedded_model_keeps_the_demo_faces(faces: NDArray[np.uint8]) -> None:
    """Faces that a model barely touches are not blended; a limit below what it does is kept, too."""
    model = ModelDevice(ModelChoice(backend="torch-eager"), "cpu", batch=3)
    device = GuardedDevice(model, 30.0, "cpu")
    device.setup()
    done = device(Faces(faces))
    assert done.angles is not None
    assert done.blends == [1.0] * len(faces)
    assert 0 < max(done.angles) < 30
    device.limit = max(done.angles) - 0.01
    again = device(Faces(faces))
    assert again.kept is not None
    assert again.blends is not None
    assert min(again.blends) < 1
    assert max(again.kept) <= device.limit
    np.testing.assert_allclose(again.kept, moved(faces, again.crops), atol=0.01)
