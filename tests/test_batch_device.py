"""The middle stage: a fake device that is what it says, and models that answer as `restore` does."""

import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from fr_deploy.batch.device import FakeDevice, ModelChoice, ModelDevice, device_stages, parse_fake
from fr_deploy.batch.guard import GuardedDevice
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.work import Faces, Restored
from fr_deploy.errors import FrDeployError, ModelError, UsageError
from fr_deploy.restorer import load_restorer
from scenes import face_crop

PACE = Pace(Path("out"), Path("out/parts"), batch=8)
FACES = Path(__file__).parent / "data" / "faces"


def crops(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 512, 512, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("fake:6ms+1.5ms", FakeDevice(6, 1.5)),
        ("fake:0ms", FakeDevice(0)),
        ("fake:0.25ms+10ms", FakeDevice(0.25, 10)),
    ],
)
def test_a_fake_device_is_named_by_its_times(name: str, device: FakeDevice) -> None:
    assert parse_fake(name) == device


@pytest.mark.parametrize(
    "name", ["fake:", "fake:6", "fake:6ms+", "fake:-1ms", "fake:6ms+1.5", "fake:1e9ms", "fake:6s"]
)
def test_other_names_are_refused_with_an_example(name: str) -> None:
    with pytest.raises(UsageError, match=r"fake:6ms\+1\.5ms"):
        parse_fake(name)


def test_a_fake_device_answers_the_negative_in_its_time() -> None:
    device = FakeDevice(40, 20)
    device.setup()
    faces = crops(3)
    began = time.perf_counter()
    restored = device(Faces(faces))
    seconds = time.perf_counter() - began
    np.testing.assert_array_equal(restored.crops, 255 - faces)
    assert 0.1 <= seconds < 5
    assert 100 <= restored.ms <= seconds * 1e3
    assert (restored.angles, restored.kept, restored.blends) == (None, None, None)


def test_a_part_of_a_batch_keeps_what_was_measured() -> None:
    whole = Restored(crops(4), [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 4.0], [1.0, 1.0, 0.0, 1.0], 9)
    part = whole.part(1, 3)
    np.testing.assert_array_equal(part.crops, whole.crops[1:3])
    assert (part.angles, part.kept, part.blends) == ([2.0, 3.0], [2.0, 0.0], [1.0, 0.0])
    assert Restored(crops(2)).part(0, 1).angles is None


def test_a_stage_for_each_device() -> None:
    choice = ModelChoice(dtype="fp16")
    plan = Plan(fixed_bucket=4)
    assert device_stages(["0", "cuda:1"], choice, plan, PACE) == [
        ModelDevice(choice, "cuda:0", 8, 4),
        ModelDevice(choice, "cuda:1", 8, 4),
    ]
    assert device_stages(["fake:1ms"] * 2, choice, Plan(), PACE) == [FakeDevice(1)] * 2


def test_a_guard_stands_around_each_device_if_asked() -> None:
    guarded = device_stages(["auto"], ModelChoice(), Plan(max_identity_angle=30.0), PACE)
    device = ModelDevice(ModelChoice(), "auto", 8)
    assert guarded == [GuardedDevice(device, 30.0, "auto", one_by_one=False)]
    measuring = Pace(PACE.destination, PACE.part_folder, measure_identity=True)
    (fake,) = device_stages(["fake:1ms"], ModelChoice(), Plan(fixed_bucket=2), measuring)
    assert fake == GuardedDevice(FakeDevice(1), None, "cpu", one_by_one=True)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["fake:1ms", "cuda:0"],
        ["gpu"],
        ["cuda:x"],
        ["0", "cuda"],
        ["cuda:1", "1"],
        ["cpu", "cpu"],
    ],
)
def test_devices_that_make_no_sense_are_refused(names: list[str]) -> None:
    with pytest.raises(UsageError):
        device_stages(names, ModelChoice(), Plan(), PACE)


def test_stages_travel_to_a_process() -> None:
    for name in ("cpu", "fake:1ms"):
        stages = device_stages([name], ModelChoice(), Plan(max_identity_angle=30.0), PACE)
        assert pickle.loads(pickle.dumps(stages)) == stages


def test_a_model_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(ModelError, match="no bundle"):
        ModelDevice(ModelChoice("./nowhere"), "cpu").setup()
    with pytest.raises(FrDeployError, match="nowhere"):
        ModelDevice(ModelChoice(engines=Path("nowhere")), "cpu").setup()


class Small:
    """A model of small faces."""

    name, size = "small", 256

    def __call__(self, faces: np.ndarray) -> np.ndarray:
        return faces


def test_a_model_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def load(*given: object, **more: object) -> Small:
        asked.extend((*given, more["batch"], more["fixed_bucket"]))
        return Small()

    monkeypatch.setattr("fr_deploy.restorer.load_restorer", load)
    with pytest.raises(ModelError, match="small restores faces of 256 px"):
        ModelDevice(ModelChoice("some/bundle"), "cpu", 8, 4).setup()
    assert asked == ["some/bundle", 8, 4]


@pytest.mark.slow
def test_the_embedded_model_answers_as_in_restore() -> None:
    name = sorted(FACES.glob("*.jpg"))[0].stem
    face = face_crop(name)[None]
    device = ModelDevice(ModelChoice(backend="torch-eager"), "cpu", batch=2)
    device.setup()
    restored = device(Faces(face))
    from fr_deploy.runtime.select import Request

    request = Request("cpu", backend="torch-eager")
    np.testing.assert_array_equal(restored.crops, load_restorer(request=request)(face))
    assert restored.ms > 0
