"""Many photos, one after the other: a bad one becomes a named result, never the end of the run."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import FrDeployError, ImageError
from fr_deploy.images import Limits, Photo, read_photo, write_photo
from fr_deploy.inputs import Job, Refusal
from fr_deploy.pipeline import (
    CropRestorer,
    Detector,
    RestoredPhoto,
    RestoreOptions,
    restore_photo,
)

if TYPE_CHECKING:
    from fr_deploy.faces import Face

Status = Literal["restored", "no_face", "skipped", "failed"]
UNEXPECTED = "unexpected"
_WRITING = {"unwritable"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """What holds for all photos of a run."""

    options: RestoreOptions = field(default_factory=RestoreOptions)
    limits: Limits = field(default_factory=Limits)
    quality: int = 95
    only_faces: bool = False
    """Write the restored 512-pixel crops instead of the photos."""
    copy_faceless: bool = False
    """Write photos in which no face was found, too."""
    skip_existing: bool = False
    """Leave photos alone whose output exists; otherwise it is replaced."""


@dataclass
class FileResult:
    """What became of one photo."""

    name: str
    status: Status
    outputs: list[Path] = field(default_factory=list[Path])
    reason: str = ""
    """A stable code, for `failed` alone."""
    message: str = ""
    width: int = 0
    height: int = 0
    faces: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Box, landmarks and score of each restored face, in pixels of the upright photo."""
    warnings: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        seconds = round(self.seconds, 3)
        return vars(self) | {"outputs": [str(p) for p in self.outputs], "seconds": seconds}


@dataclass(frozen=True)
class Pictures:
    """The pixels of one result, alive only while it is reported."""

    before: NDArray[np.uint8]
    restored: RestoredPhoto


OnResult = Callable[[FileResult, Pictures | None], None]


def restore_files(
    jobs: Iterable[Job],
    detector: Detector | None,
    restorer: CropRestorer,
    settings: RunSettings,
    on_result: OnResult,
) -> list[FileResult]:
    """Restore photos one by one.

    A photo that cannot be read or written is a result with a reason. So is an unexpected error in
    one photo (reason `unexpected`), which is logged with its traceback at level DEBUG.

    Args:
        jobs: what to read and where to write.
        detector: may be None if the photos are aligned.
        restorer: the model.
        settings: how.
        on_result: called after each photo.

    Raises:
        ResourceError: the disk is full; photos written so far are whole.
    """
    results: list[FileResult] = []
    for job in jobs:
        start = time.perf_counter()
        try:
            result, pictures = _restore_file(job, detector, restorer, settings)
        except ImageError as error:
            result, pictures = _failed(job, error.reason, str(error)), None
        except FrDeployError:
            raise
        except MemoryError:
            result, pictures = _failed(job, "too_large", "not enough memory"), None
        except Exception as error:
            _log.debug("%s", job.source.path, exc_info=True)
            result, pictures = _failed(job, UNEXPECTED, f"{type(error).__name__}: {error}"), None
        result.seconds = time.perf_counter() - start
        results.append(result)
        on_result(result, pictures)
    return results


def refused(refusals: Sequence[Refusal]) -> list[FileResult]:
    """Results for what was named but holds no photo."""
    return [FileResult(r.name, "failed", reason=r.reason, message=r.message) for r in refusals]


def exit_code(results: Sequence[FileResult]) -> int:
    """0 all well, 1 an unexpected error, 3 some photos failed, 4 none could even be read."""
    failed = [result for result in results if result.status == "failed"]
    if any(result.reason == UNEXPECTED for result in failed):
        return 1
    if len(failed) == len(results) and not any(r.reason in _WRITING for r in failed):
        return 4
    return 3 if failed else 0


def face_path(output: Path, index: int) -> Path:
    """Where a restored crop goes: `a.jpg` gives `a-face0.jpg`."""
    return output.with_name(f"{output.stem}-face{index}{output.suffix}")


def face_json(face: "Face") -> dict[str, Any]:
    """Box, landmarks and score of a face as plain JSON values, rounded."""
    return {
        "box": [round(float(v), 1) for v in face.box],
        "landmarks": [[round(float(v), 1) for v in point] for point in face.landmarks],
        "score": round(float(face.score), 4),
    }


def _failed(job: Job, reason: str, message: str) -> FileResult:
    return FileResult(str(job.source.path), "failed", reason=reason, message=message)


def _restore_file(
    job: Job, detector: Detector | None, restorer: CropRestorer, settings: RunSettings
) -> tuple[FileResult, Pictures | None]:
    name = str(job.source.path)
    target = face_path(job.output, 0) if settings.only_faces else job.output
    if settings.skip_existing and target.exists():
        return FileResult(name, "skipped", [target], message="its output exists"), None
    photo = read_photo(job.source.path, settings.limits)
    restored = restore_photo(photo.rgb, detector, restorer, settings.options)
    height, width, _ = photo.rgb.shape
    count = len(restored.restored)
    result = FileResult(
        name,
        "restored" if count else "no_face",
        width=width,
        height=height,
        faces=[face_json(face) for face in restored.faces],
        warnings=photo.warnings,
    )
    if settings.only_faces:
        for index, crop in enumerate(restored.restored):
            face = Photo(crop, photo.format)
            _write(result, face_path(job.output, index), face, settings.quality)
    elif count or settings.copy_faceless:
        _write(result, job.output, photo.with_rgb(restored.rgb), settings.quality)
    return result, Pictures(photo.rgb, restored)


def _write(result: FileResult, path: Path, photo: Photo, quality: int) -> None:
    result.warnings = [*result.warnings, *write_photo(path, photo, quality=quality)]
    result.outputs.append(path)
