"""The first stage of a run: fetch a photo, decode it, find its faces, cut them out."""

import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.work import Prepared

if TYPE_CHECKING:
    from fr_deploy.pipeline import Detector


class Fetches(Protocol):
    """What reads items: `fr_deploy.batch.fetch.Fetcher`. It is picklable."""

    def fetch(self, item: Item, /) -> tuple[bytes, str]:
        """An item's bytes and their SHA-256 in hexadecimal.

        Raises:
            ImageError: they cannot be had.
        """
        ...


@dataclass
class PrepareStage:
    """Item -> Prepared, by the rules of `read_photo` and the first half of `restore_photo`.

    A photo that is one aligned face needs no detector and no torch: a process for those is ready in a third of a
    second.
    """

    plan: Plan
    fetcher: Fetches
    _detector: "Detector | None" = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Load the detector; everything computes in one thread, for there is a process a core."""
        one_thread(torch=not self.plan.options.aligned)
        if not self.plan.options.aligned:
            from fr_deploy.faces import FaceDetector

            confidence = self.plan.confidence
            self._detector = (
                FaceDetector(threads=1)
                if confidence is None
                else FaceDetector(confidence, threads=1)
            )

    def __call__(self, item: Item) -> Prepared:
        """Prepare one photo.

        Raises:
            ImageError: it cannot be fetched or read, or would be too large.
        """
        from fr_deploy.image_decode import check_size, decode_photo
        from fr_deploy.pipeline import find_faces

        limits, clock = self.plan.limits, Laps()
        data, digest = self.fetcher.fetch(item)
        check_size(len(data), limits)
        clock.lap("fetch")
        photo = decode_photo(io.BytesIO(data), limits)
        clock.lap("decode")
        found = find_faces(photo.rgb, self._detector, self.plan.options)
        clock.lap("detect")
        return Prepared(
            item, digest, photo, list(found.faces), list(found.matrices), found.crops, clock.ms
        )


class Laps:
    """Milliseconds of one step after the other.

    Args:
        ms: laps so far, which are kept.
    """

    def __init__(self, ms: dict[str, float] | None = None) -> None:
        self.ms = dict(ms or {})
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """A step ends here; steps of one name are added up."""
        now = time.perf_counter()
        self.ms[name] = round(self.ms.get(name, 0.0) + (now - self._last) * 1e3, 3)
        self._last = now


def one_thread(*, torch: bool) -> None:
    """Let OpenCV, and torch if it is needed, compute in the calling thread alone."""
    import cv2

    cv2.setNumThreads(1)
    if torch:
        import torch as library

        library.set_num_threads(1)
