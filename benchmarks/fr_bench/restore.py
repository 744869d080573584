"""`fr-deploy bench restore`: one face on this machine, against the same modules called by hand."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from fr_bench.machine import Machine, this_machine
from fr_bench.plain_diffusers import PlainDiffusers
from fr_bench.rows import Row
from fr_bench.timing import Ratio, Timing, interleave, ratio
from fr_deploy.bundle import load_bundle, load_graph
from fr_deploy.errors import ModelError
from fr_deploy.restorer import Restorer
from fr_deploy.runtime.agreement import Agreement, agree, random_pictures
from fr_deploy.runtime.torch_backend import TorchBackend

OURS, PLAIN = "fr-deploy", "plain diffusers"
LEAST_PSNR = 50.0
"""In dB; a difference of 1 of 255 in two thirds of the values. Float32 summed in another order gives far fewer."""


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
        return [self._row(name) for name in self.timings]

    def document(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "benchmark": "restore",
            "date": self.date,
            "model": self.model,
            "size": self.size,
            "ratio": asdict(self.ratio),
            "agreement": self._quality(),
            "milliseconds": {
                name: [round(s * 1e3, 3) for s in timing.samples]
                for name, timing in self.timings.items()
            },
            "machine": asdict(self.machine),
        }

    def _quality(self) -> dict[str, Any]:
        psnr = round(self.agreement.psnr, 2) if self.agreement.largest else None
        return {"psnr_db": psnr, "max_difference": self.agreement.largest}

    def _row(self, name: str) -> Row:
        timing = self.timings[name]
        quality: dict[str, Any] = {"psnr_db": None, "max_difference": 0}
        if name == OURS:
            quality = self._quality()
        best, p20, p50, p80 = (round(timing.milliseconds(p), 3) for p in (0, 20, 50, 80))
        return Row(
            **asdict(self.machine),
            **quality,
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
    faces = random_pictures(restorer.size)
    agreement = agree(torch.from_numpy(restorer(faces.numpy())), modules(faces))
    require(agreement)
    calls = {OURS: lambda: restorer(faces.numpy()), PLAIN: lambda: modules(faces)}
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


def require(agreement: Agreement) -> None:
    """Refuse to time pictures that differ.

    Raises:
        ModelError: they differ by more than 1 of 255 somewhere, and by less than 50 dB.
    """
    if agreement.largest > 1 and agreement.psnr <= LEAST_PSNR:
        raise ModelError(
            f"{OURS} and {PLAIN} return different pictures: {agreement}; allowed: above {LEAST_PSNR:.0f} dB, or a "
            "largest difference of 1. Nothing was timed"
        )
