"""The three stages in a row write, byte for byte, what `fr-deploy restore` writes."""

from collections.abc import Iterator
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import odd_inputs as odd
from fr_deploy.batch.device import FakeDevice
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.finish import FinishStage
from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.prepare import PrepareStage
from fr_deploy.batch.work import Faces, Finish, Finished, nothing_restored
from fr_deploy.faces import FaceDetector
from fr_deploy.inputs import Job, Source
from fr_deploy.restore_files import FileResult, RunSettings, restore_files
from fr_deploy.settings import Limits, RestoreOptions

DEMO = Path(__file__).parents[1] / "assets" / "demo"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A stage sets these for its process; two threads on a core that is shared wait for each other."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portrait, a photo turned by its EXIF, one without a face, one with alpha."""
    folder = tmp_path_factory.mktemp("sources")
    odd.write(folder, "hopper.jpg", (DEMO / "grace-hopper.jpg").read_bytes())
    hopper = np.asarray(cv2.imread(str(DEMO / "grace-hopper.jpg"), cv2.IMREAD_COLOR_RGB), np.uint8)
    odd.write(folder, "turned.jpg", odd.turned_jpeg(hopper, 6, "JPEG"))
    odd.write(folder, "faceless.png", odd.encoded(odd.gradient(200, 300), "PNG"))
    alpha = np.linspace(1, 255, hopper.size // 3).reshape(hopper.shape[:2]).astype(np.uint8)
    odd.write(folder, "alpha.png", odd.encoded(np.dstack([hopper, alpha]), "PNG"))
    return folder


def negative(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return 255 - crops


def by_restore(sources: Path, out: Path, plan: Plan) -> list[FileResult]:
    settings = RunSettings(
        plan.options,
        plan.limits,
        quality=plan.quality,
        only_faces=plan.only_faces,
        copy_faceless=plan.copy_faceless,
    )
    paths = sorted(sources.iterdir())
    jobs = [Job(Source(path, PurePath(path.name)), out / path.name) for path in paths]
    detector = FaceDetector(threads=1)
    return restore_files(jobs, detector, negative, settings, lambda *_: None)


def by_stages(sources: Path, out: Path, plan: Plan) -> list[Finished]:
    prepare = PrepareStage(plan, Fetcher(plan.limits))
    device, finish = FakeDevice(0), FinishStage(plan, Pace(out, out / "parts"))
    for stage in (prepare, device, finish):
        stage.setup()
    done: list[Finished] = []
    for i, path in enumerate(sorted(sources.iterdir())):
        prepared = prepare(Item(i, path.name, str(path), path.name))
        faces = prepared.crops
        restored = device(Faces(faces)) if len(faces) else nothing_restored()
        done.append(finish(Finish(prepared, restored)))
    return done


PLANS = {
    "as photos": Plan(copy_faceless=True),
    "only faces": Plan(only_faces=True),
    "half blended, enlarged": Plan(RestoreOptions(blend=0.5, upscale=1.25), quality=80),
    "aligned": Plan(RestoreOptions(aligned=True), Limits(max_pixels=10_000_000)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_files_and_records_are_those_of_restore(tmp_path: Path, sources: Path, plan: Plan) -> None:
    expected = by_restore(sources, tmp_path / "restore", plan)
    done = by_stages(sources, tmp_path / "batch", plan)
    statuses = {result.status for result in expected}
    assert "restored" in statuses
    for result, one in zip(expected, done, strict=True):
        record = one.record
        copied = result.status == "no_face" and bool(result.outputs)
        assert record.status == ("copied" if copied else result.status)
        assert (record.width, record.height) == (result.width, result.height)
        assert record.faces == result.faces
        assert record.warnings == result.warnings
        assert [o.path for o in record.outputs] == [path.name for path in result.outputs]
        for part, path in zip(one.parts, result.outputs, strict=True):
            assert Path(part).read_bytes() == path.read_bytes()
