"""`fr-deploy bench serve-batch`: photos a second against a plain loop, and how busy a device is kept."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fr_bench.machine import Machine, this_machine
from fr_bench.photos import write_crops, write_photos
from fr_bench.timing import Ratio, Timing, interleave, ratio
from fr_deploy.errors import FrDeployError, ModelError

OURS, NAIVE = "serve-batch", "naive loop"
BATCH = 16
PHOTOS = "2-megapixel JPEG to PNG"
BUSY_PHOTOS = f"2-megapixel JPEG to JPEG, batch {BATCH}"
BUSY_CROPS = f"512 px JPEG to JPEG, batch {BATCH}"


@dataclass(frozen=True, kw_only=True)
class ServeBatchRow(Machine):
    """One technique; the order of the fields is the header of the CSV file."""

    date: str
    technique: str
    task: str
    """What came in and went out."""
    device: str
    photos: int
    repeats: int
    best_s: float
    """Of a whole command, start included; so are the next three."""
    p20_s: float
    p50_s: float
    p80_s: float
    images_per_s: float
    """At the median."""
    device_busy: float | None
    """Share of the time between its first batch and its last, the median of the runs; None: not measured."""


MakeRow = Callable[[str, str, int, Timing, float | None], ServeBatchRow]
"""Technique, task, files, timing and how busy the device was -> the row."""


@dataclass(frozen=True)
class Measured:
    """One run of the benchmark."""

    rows: list[ServeBatchRow]
    ratio: Ratio
    """How many times the naive loop is slower."""

    def document(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "benchmark": "serve-batch",
            "ratio": asdict(self.ratio),
            "rows": [asdict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Job:
    """What is measured, and with what.

    Args:
        folder: empty; takes the photos and the results.
        device: a fake one, such as `fake:6ms+7ms`.
        photos: how many of 2 megapixels.
        crops: how many aligned faces of 512 px.
        repeats: rounds that count.
        more: options of serve-batch.
    """

    folder: Path
    device: str
    photos: int
    crops: int
    repeats: int
    more: Sequence[str] = ()

    def ours(self, source: Path, *options: str) -> "Command":
        """serve-batch on one of the sources."""
        asked = (*options, *self.more)
        return Command(
            self.folder / "ours", lambda out: serve_batch(source, out, self.device, *asked)
        )


def bench_serve_batch(job: Job) -> Measured:
    """With one device: serve-batch in turns with the naive loop, then how busy it keeps the device in batches of 16.

    Each is a command of its own, started anew each time; in a round before those that count, the pictures of the two
    are compared.

    Raises:
        ModelError: the two write different pixels; nothing was timed.
        FrDeployError: one of the commands failed.
    """
    machine = this_machine()
    photos, crops = job.folder / "photos", job.folder / "crops"
    write_photos(photos, job.photos)
    write_crops(crops, job.crops)
    make = _rows(machine, job.device)
    rows, gain = _against_the_loop(job, photos, make)
    jpg = ("--ext", "jpg", "--batch", str(BATCH))
    rows.append(_alone(job, job.ours(photos, *jpg), make, BUSY_PHOTOS, job.photos))
    rows.append(_alone(job, job.ours(crops, "--aligned", *jpg), make, BUSY_CROPS, job.crops))
    return Measured(rows, gain)


def _against_the_loop(job: Job, source: Path, make: "MakeRow") -> tuple[list[ServeBatchRow], Ratio]:
    ours = job.ours(source, "--ext", "png")
    naive = Command(job.folder / "naive", lambda out: naive_loop(source, out, job.device))
    ours()
    naive()
    require_same(ours.out, naive.out, job.photos)
    busy: list[float] = []
    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: busy.append(ours()["busy"]["restore"]),
        NAIVE: naive,
    }
    timings = interleave(calls, repeats=job.repeats, warmups=0)
    rows = [
        make(OURS, PHOTOS, job.photos, timings[OURS], float(np.median(busy))),
        make(NAIVE, PHOTOS, job.photos, timings[NAIVE], None),
    ]
    return rows, ratio(timings[NAIVE], timings[OURS])


def _alone(job: Job, ours: "Command", make: "MakeRow", task: str, files: int) -> ServeBatchRow:
    busy: list[float] = []
    calls: dict[str, Callable[[], object]] = {OURS: lambda: busy.append(ours()["busy"]["restore"])}
    timings = interleave(calls, repeats=job.repeats, warmups=0)
    return make(OURS, task, files, timings[OURS], float(np.median(busy)))


class Command:
    """A command that writes into a folder which is empty each time.

    Args:
        out: the folder.
        run: is called with it.
    """

    def __init__(self, out: Path, run: Callable[[Path], dict[str, Any]]) -> None:
        self.out = out
        self._run = run

    def __call__(self) -> dict[str, Any]:
        """Empty the folder and run."""
        shutil.rmtree(self.out, ignore_errors=True)
        return self._run(self.out)


def serve_batch(source: Path, out: Path, device: str, *more: str) -> dict[str, Any]:
    """Run the command; returns its summary.

    Raises:
        FrDeployError: it failed.
    """
    options = ["--device", device, "--json", "--progress", "none", *more]
    return json.loads(_output("fr_deploy", "serve-batch", str(source), str(out), *options))


def naive_loop(source: Path, out: Path, device: str) -> dict[str, Any]:
    """Run the loop in a process of its own; there is no summary.

    Raises:
        FrDeployError: it failed.
    """
    _output("fr_bench.naive_loop", str(source), str(out), device)
    return {}


def require_same(ours: Path, naive: Path, photos: int) -> None:
    """Compare the pixels of all results.

    Raises:
        ModelError: a result is missing, or a pixel differs.
    """
    names = {path.name for path in naive.glob("*.png")}
    found = {path.name for path in ours.glob("*.png")}
    if names != found or len(names) != photos:
        raise ModelError(
            f"{OURS} wrote {len(found)} photos, the {NAIVE} {len(names)}, of {photos}; nothing was timed"
        )
    for name in sorted(names):
        with Image.open(ours / name) as one, Image.open(naive / name) as other:
            if not np.array_equal(np.asarray(one), np.asarray(other)):
                raise ModelError(f"{name}: {OURS} and the {NAIVE} differ; nothing was timed")


def _output(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise FrDeployError(
            f"{' '.join(arguments[:2])} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout


def _rows(machine: Machine, device: str) -> "MakeRow":
    date = datetime.now(UTC).isoformat(timespec="seconds")

    def make(
        technique: str, task: str, photos: int, timing: Timing, busy: float | None
    ) -> ServeBatchRow:
        best, p20, p50, p80 = (timing.milliseconds(p) / 1e3 for p in (0, 20, 50, 80))
        return ServeBatchRow(
            **asdict(machine),
            date=date,
            technique=technique,
            task=task,
            device=device,
            photos=photos,
            repeats=len(timing.samples),
            best_s=round(best, 3),
            p20_s=round(p20, 3),
            p50_s=round(p50, 3),
            p80_s=round(p80, 3),
            images_per_s=round(photos / p50, 3),
            device_busy=None if busy is None else round(busy, 4),
        )

    return make
