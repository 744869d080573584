"""The last stage: what it writes is what `restore` writes, whole, hashed and nowhere but among the parts."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import odd_inputs as odd
from fr_deploy.batch.finish import FinishStage
from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.work import Finish, Finished, Prepared, Restored, nothing_restored
from fr_deploy.errors import ImageError, ResourceError
from fr_deploy.faces import Face, align_faces
from fr_deploy.images import Photo, write_photo
from fr_deploy.pipeline import restore_photo
from fr_deploy.settings import RestoreOptions

POINTS = np.array([(38, 47), (63, 47), (51, 62), (40, 74), (62, 74)], np.float32)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A stage sets these for its process; two threads on a core that is shared wait for each other."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def face(x: float, y: float) -> Face:
    points = (POINTS + np.array((x, y))).astype(np.float32)
    box = np.concatenate([points.min(0) - 12, points.max(0) + 12])
    return Face(box.astype(np.float32), points, 0.987654)


FACES = [face(20, 30), face(220, 80)]


def picture() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:240, 0:360]
    return np.stack([x // 2 + 20, y // 2 + 60, (x + y) // 4], -1).astype(np.uint8)


class Knows:
    """A detector that knows where the faces are."""

    def detect(self, rgb: NDArray[np.uint8], **_: object) -> list[Face]:
        del rgb
        return list(FACES)


def task(output: str = "a/b.png", *, faces: bool = True, photo: Photo | None = None) -> Finish:
    photo = photo or Photo(picture(), "PNG", warnings=["first_frame_only"])
    crops, matrices = align_faces(photo.rgb, FACES if faces else [])
    item = Item(7, "a/b.gif", "/src/a/b.gif", output)
    ms = {"fetch": 1.0, "decode": 2.0, "detect": 3.0}
    prepared = Prepared(item, "0" * 64, photo, FACES if faces else [], matrices, crops, ms)
    restored = Restored(255 - crops, ms=4.5) if faces else nothing_restored()
    return Finish(prepared, restored)


def finished(folder: Path, plan: Plan, work: Finish, *, pictures: bool = False) -> Finished:
    stage = FinishStage(plan, Pace(folder, folder / "parts", pictures=pictures))
    stage.setup()
    return stage(work)


def check_parts(done: Finished) -> list[bytes]:
    assert len(done.parts) == len(done.record.outputs)
    found = [Path(part).read_bytes() for part in done.parts]
    for data, output, part in zip(found, done.record.outputs, done.parts, strict=True):
        assert (output.size, output.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert os.path.isabs(part)
    return found


OPTIONS = {
    "plain": RestoreOptions(),
    "enlarged": RestoreOptions(upscale=1.5),
    "blended": RestoreOptions(blend=0.4),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bytes_are_those_of_restore(tmp_path: Path, options: RestoreOptions, suffix: str) -> None:
    alpha = picture()[..., 0].copy() if suffix in ("png", "jpg") else None
    photo = Photo(picture(), "PNG", alpha)
    whole = restore_photo(picture(), Knows(), lambda crops: 255 - crops, options)
    codes = write_photo(tmp_path / f"b.{suffix}", photo.with_rgb(whole.rgb), quality=90)
    done = finished(tmp_path, Plan(options, quality=90), task(f"b.{suffix}", photo=photo))
    assert check_parts(done) == [(tmp_path / f"b.{suffix}").read_bytes()]
    assert done.record.warnings == codes


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    done = finished(tmp_path, Plan(), task())
    record = done.record
    assert (record.index, record.name, record.status) == (7, "a/b.gif", "restored")
    assert record.id == Item(7, "a/b.gif", "", "").id
    assert (record.width, record.height, record.in_sha256) == (360, 240, "0" * 64)
    assert [output.path for output in record.outputs] == ["a/b.png"]
    assert [entry["score"] for entry in record.faces] == [0.9877, 0.9877]
    assert set(record.faces[0]) == {"box", "landmarks", "score"}
    assert record.warnings == ["first_frame_only"]
    assert list(record.ms) == ["fetch", "decode", "detect", "restore", "paste", "encode", "write"]
    assert record.ms["restore"] == 4.5
    assert type(record).from_json(record.to_json()) == record
    assert done.pictures == []


def test_what_the_guard_did_is_said_of_each_face(tmp_path: Path) -> None:
    work = task()
    work.restored.angles, work.restored.kept = [12.345, 40.0], [12.345, 18.5]
    work.restored.blends = [1.0, 0.25]
    rows = finished(tmp_path, Plan(), work).record.faces
    assert [(row["angle"], row["angle_kept"], row["blend"]) for row in rows] == [
        (12.35, 12.35, 1.0),
        (40.0, 18.5, 0.25),
    ]


def test_without_a_face_nothing_is_written(tmp_path: Path) -> None:
    done = finished(tmp_path, Plan(), task(faces=False), pictures=True)
    assert (done.record.status, done.parts, done.record.outputs) == ("no_face", [], [])
    assert "restore" not in done.record.ms
    assert done.pictures == []
    assert not (tmp_path / "parts").exists()


def test_without_a_face_the_photo_is_copied_if_asked(tmp_path: Path) -> None:
    done = finished(tmp_path, Plan(copy_faceless=True), task(faces=False))
    assert done.record.status == "copied"
    np.testing.assert_array_equal(odd_read(check_parts(done)[0]), picture())


def odd_read(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_only_faces_are_files_of_their_own(tmp_path: Path) -> None:
    plan = Plan(RestoreOptions(blend=0.3), only_faces=True, copy_faceless=True)
    work = task()
    done = finished(tmp_path, plan, work)
    assert [output.path for output in done.record.outputs] == ["a/b-face0.png", "a/b-face1.png"]
    for data, crop in zip(check_parts(done), work.restored.crops, strict=True):
        np.testing.assert_array_equal(odd_read(data), crop)
    assert finished(tmp_path, plan, task(faces=False)).record.status == "no_face"


@pytest.mark.parametrize("upscale", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(512, 512), (300, 200)], ids=str)
def test_aligned_photos_are_those_of_restore(
    tmp_path: Path, shape: tuple[int, int], upscale: float
) -> None:
    options = RestoreOptions(aligned=True, upscale=upscale, blend=0.75)
    rgb = odd.gradient(*shape)
    whole = restore_photo(rgb, None, lambda crops: 255 - crops, options)
    prepared = Prepared(Item(0, "a", "a", "a.png"), "", Photo(rgb, "PNG"), [], [], whole.crops)
    work = Finish(prepared, Restored(255 - whole.crops, [3.0], [3.0], [1.0]))
    done = finished(tmp_path, Plan(options), work, pictures=True)
    np.testing.assert_array_equal(odd_read(check_parts(done)[0]), whole.rgb)
    assert done.record.faces == [{"angle": 3.0, "blend": 1.0, "angle_kept": 3.0}]
    assert len(done.pictures) == 1


def test_pictures_are_small_and_before_comes_first(tmp_path: Path) -> None:
    done = finished(tmp_path, Plan(RestoreOptions(upscale=2.0)), task(), pictures=True)
    photo, first = ([odd_read(data) for data in pair] for pair in done.pictures)
    assert [shown.shape for shown in photo] == [(171, 256, 3)] * 2
    assert [shown.shape for shown in first] == [(160, 160, 3)] * 2
    small = cv2.resize(picture(), (256, 171), interpolation=cv2.INTER_AREA)
    assert np.abs(photo[0].astype(int) - small).mean() < 2
    assert np.abs(photo[1].astype(int) - small).mean() > 2
    assert np.abs(first[1].astype(int) - (255 - first[0].astype(int))).mean() < 4


def test_pictures_end_when_the_report_is_full(tmp_path: Path) -> None:
    stage = FinishStage(Plan(), Pace(tmp_path, tmp_path / "parts", pictures=True))
    stage.setup()
    stage._pictured = 499  # pyright: ignore[reportPrivateUsage]
    assert [len(stage(task()).pictures) for _ in range(2)] == [2, 0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
@pytest.mark.parametrize("good", [0, 1])
def test_a_disk_that_fails_ends_the_run_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, good: int
) -> None:
    real, calls = getattr(os, call), 0

    def fail(*arguments: object, **options: object) -> int:
        nonlocal calls
        calls += 1
        if calls > good:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    stage = FinishStage(Plan(only_faces=True), Pace(tmp_path, tmp_path / "parts"))
    stage.setup()
    stage(task())  # imports open files, too
    for part in (tmp_path / "parts").iterdir():
        part.unlink()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match="resume"):
        stage(task())
    monkeypatch.undo()
    assert calls == good + 1
    assert list((tmp_path / "parts").iterdir()) == []


def test_an_error_that_passes_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, answers = os.fsync, [errno.ESTALE, errno.EIO]

    def fail_twice(fd: int) -> None:
        if answers:
            raise OSError(answers.pop(), "for a while")
        real(fd)

    monkeypatch.setattr(os, "fsync", fail_twice)
    done = finished(tmp_path, Plan(), task())
    check_parts(done)
    assert [str(part) for part in (tmp_path / "parts").iterdir()] == done.parts


def test_a_size_the_format_cannot_hold_is_the_items_fault(tmp_path: Path) -> None:
    photo = Photo(np.zeros((16, 16_384, 3), np.uint8), "PNG")
    with pytest.raises(ImageError, match="WEBP") as caught:
        finished(tmp_path, Plan(copy_faceless=True), task("a.webp", faces=False, photo=photo))
    assert caught.value.reason == "unwritable"
    assert not (tmp_path / "parts").exists()
