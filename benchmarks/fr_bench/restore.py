"""`fr-deploy bench restore`: one face on this machine, against the same modules called by hand."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from fr_bench.machine import Machine, this_machine
from fr_bench.plain_diffusers import PlainDiffusers
from fr_bench.rows import Row
from fr_bench.timing import Ratio, Timing, interleave, ratio
from fr_deploy.bundle import load_bundle, load_graph
from fr_deploy.errors import ModelError
from fr_deploy.restorer import Restorer
from fr_deploy.runtime.torch_backend import TorchBackend

OURS, PLAIN = "fr-deploy", "plain diffusers"
LEAST_PSNR = 50.0
"""In dB; a difference of 1 of 255 in two thirds of the values. Float32 summed in another order gives far fewer."""

Face = NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """How far two uint8 pictures are apart."""

    psnr_db: float | None
    """None when no byte differs."""
    max_difference: int


@dataclass(frozen=True)
class Result:
    """One run of the benchmark."""

    machine: Machine
    date: str
    model: str
    size: int
    timings: dict[str, Timing]
    ratio: Ratio
    agreement: Agreement

    def rows(self) -> list[Row]:
        """One row a technique; the plain one is the reference, so it agrees with itself."""
        agreements = {OURS: self.agreement, PLAIN: Agreement(None, 0)}
        return [self._row(name, agreements[name]) for name in self.timings]

    def document(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "benchmark": "restore",
            "date": self.date,
            "model": self.model,
            "size": self.size,
            "ratio": asdict(self.ratio),
            "agreement": asdict(self.agreement),
            "milliseconds": {
                name: [round(s * 1e3, 3) for s in timing.samples]
                for name, timing in self.timings.items()
            },
            "machine": asdict(self.machine),
        }

    def _row(self, name: str, agreement: Agreement) -> Row:
        timing = self.timings[name]
        best, p20, p50, p80 = (round(timing.milliseconds(p), 3) for p in (0, 20, 50, 80))
        return Row(
            **asdict(self.machine),
            **asdict(agreement),
            date=self.date,
            technique=name,
            model=self.model,
            size=self.size,
            batch=1,
            repeats=len(timing.samples),
            best_ms=best,
            p20_ms=p20,
            p50_ms=p50,
            p80_ms=p80,
        )


def bench_restore(model: str, *, repeats: int = 9) -> Result:
    """Check that both techniques return the same picture, then time them in turns.

    Args:
        model: embedded name, bundle folder or hub id.
        repeats: rounds that count.

    Raises:
        ModelError: the bundle is unusable, or the two pictures differ.
    """
    machine = this_machine()
    restorer = Restorer(TorchBackend(load_graph(model)), model)
    modules = PlainDiffusers(load_bundle(model))
    face = picture(restorer.size)

    def plain(face: Face) -> Face:
        return modules(torch.from_numpy(face[None])).numpy()[0]

    agreement = compare(restorer(face[None])[0], plain(face))
    calls = {OURS: lambda: restorer(face[None]), PLAIN: lambda: plain(face)}
    timings = interleave(calls, repeats=repeats)
    return Result(
        machine=machine,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        size=restorer.size,
        timings=timings,
        ratio=ratio(timings[PLAIN], timings[OURS]),
        agreement=agreement,
    )


def compare(ours: Face, plain: Face) -> Agreement:
    """PSNR and largest difference of two pictures of one shape.

    Raises:
        ModelError: they differ by more than 1 of 255 somewhere, and by less than 50 dB.
    """
    difference = ours.astype(np.int16) - plain.astype(np.int16)
    largest = int(np.abs(difference).max())
    if largest == 0:
        return Agreement(None, 0)
    psnr = float(10 * np.log10(255**2 / np.square(difference.astype(np.float64)).mean()))
    if largest > 1 and psnr <= LEAST_PSNR:
        raise ModelError(
            f"{OURS} and {PLAIN} return different pictures: {psnr:.1f} dB apart, largest difference {largest} "
            f"of 255; allowed: above {LEAST_PSNR:.0f} dB, or a largest difference of 1. Nothing was timed"
        )
    return Agreement(round(psnr, 2), largest)


def picture(size: int) -> Face:
    """A picture with coarse and fine detail, always the same: uint8 [size, size, 3]."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (8, 8, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    grain = random.normal(0, 8, (size, size, 3))
    return (smooth + grain).clip(0, 255).astype(np.uint8)
