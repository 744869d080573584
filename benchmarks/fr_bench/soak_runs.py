"""Runs of `serve-batch` as soaks start, kill and check them."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fr_bench.killing import PATIENCE_S, Group, family, until_gone
from fr_deploy.batch.check import Report, verify
from fr_deploy.batch.folder import state_folder
from fr_deploy.batch.item import Record
from fr_deploy.batch.ledger import read_outcomes
from fr_deploy.batch.lines import read_lines
from fr_deploy.batch.state import State
from fr_deploy.errors import FrDeployError

SLOW = "fake:30ms+5ms"
"""20 ms a photo in batches of two: slow enough to be killed in between."""
_HARMLESS = {"without_outcome", "torn"}
"""What a run that was killed may show until it goes on."""


class Run(Group):
    """`serve-batch` in a session of its own."""

    def __init__(self, source: Path, out: Path, *more: str, device: str = SLOW) -> None:
        """Start it: aligned photos, a fake device, batches of two."""
        fixed = ["--aligned", "--device", device, "--batch", "2", "--progress", "none"]
        command = [sys.executable, "-m", "fr_deploy", "serve-batch", str(source), str(out)]
        super().__init__([*command, *fixed, *more], stderr=subprocess.STDOUT)

    def wait(self, true: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
        """Wait for something while it runs.

        Raises:
            FrDeployError: it ended before, or it takes too long.
        """
        end = time.monotonic() + patience_s
        while not true():
            if self.process.poll() is not None:
                raise FrDeployError(f"the run ended before {what}: {self.process.communicate()[0]}")
            if time.monotonic() > end:
                raise FrDeployError(f"no {what} within {patience_s:g} s")
            time.sleep(0.02)

    def end(self, code: int = 0) -> str:
        """Let it come to its end; returns what it said.

        Raises:
            FrDeployError: with another exit code.
        """
        said = self.process.communicate(timeout=10 * PATIENCE_S)[0]
        if self.process.returncode != code:
            raise FrDeployError(f"exit code {self.process.returncode}: {said}")
        return said


def kill_again_and_again(
    source: Path, out: Path, *more: str, kills: int, chance: random.Random
) -> float:
    """SIGKILL to the process group of a run, up to half a second after each start's first record; then to its end.

    Args:
        source: photos.
        out: takes results; does not exist.
        more: options of the runs that are killed; the last one, which goes on to the end, has none.
        kills: how many.
        chance: when.

    Returns:
        Seconds at most from a kill until all processes below the run were gone.

    Raises:
        FrDeployError: something was lost, done twice or torn, or all was done before the last kill.
    """
    items, gone = sum(1 for _ in source.iterdir()), 0.0
    for turn in range(kills):
        with Run(source, out, *more) as run:
            wait_for_a_record(run, out)
            time.sleep(chance.uniform(0, 0.5))
            ours = [*family(run.process.pid)]
            run.kill()
        gone = max(gone, until_gone(ours))
        found = report_of(out).counts
        if set(found) - _HARMLESS:
            raise FrDeployError(f"after {turn + 1} kills: {dict(found)}")
        if ledger_lines(out) == items:
            raise FrDeployError(f"all done after {turn + 1} kills: too fast for {kills}")
    with Run(source, out) as run:
        run.end()
    return gone


def wait_for_a_record(run: Run, out: Path) -> None:
    """Wait until the ledger has one more than now.

    Raises:
        FrDeployError: as `Run.wait`.
    """
    before = ledger_lines(out)
    run.wait(lambda: ledger_lines(out) > before, "a record")


def compare(source: Path, out: Path, whole: Path, items: int) -> None:
    """See that a run is complete, and equal to one by processes of this machine.

    Raises:
        FrDeployError: it is not.
    """
    found = report_of(out)
    if not found.ok or found.outcomes != items or ledger_lines(out) != items:
        raise FrDeployError(f"{found.outcomes} outcomes of {items}: {dict(found.counts)}")
    failures = [record.name for record in records(out) if record.status != "restored"]
    if failures:
        raise FrDeployError(f"innocent photos failed: {failures[:5]}")
    with Run(source, whole, device="fake:1ms") as run:
        run.end()
    theirs, ours = outputs(whole), outputs(out)
    if theirs != ours:
        raise FrDeployError("outputs differ from those of a run that was not killed")
    if any((state_folder(out) / "parts").iterdir()):
        raise FrDeployError("parts are left")


def make_photos(folder: Path, count: int) -> Path:
    """Small PNG files of noise, each another one."""
    folder.mkdir(parents=True)
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"photo {index:05}.png")
    return folder


def outputs(out: Path) -> dict[str, bytes]:
    """All results."""
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def ledger_lines(out: Path) -> int:
    """Outcomes in the ledger, each line counted."""
    return sum(line.value is not None for line in read_lines(state_folder(out) / "ledger.jsonl"))


def report_of(out: Path) -> Report:
    """What `verify` finds."""
    with State(state_folder(out), write=False) as state:
        return verify(state)


def records(out: Path) -> list[Record]:
    """Outcomes in the ledger, the last one of each item."""
    return list(read_outcomes(state_folder(out) / "ledger.jsonl"))
