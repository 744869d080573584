"""`serve-batch --ray` under SIGKILL: of the driver's process group, and of the actor."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fr_deploy.batch.check import Report, verify
from fr_deploy.batch.folder import state_folder
from fr_deploy.batch.lines import read_lines
from fr_deploy.batch.state import State
from fr_deploy.errors import FrDeployError

SLOW = "fake:30ms+5ms"
"""20 ms a photo in batches of two: slow enough to be killed in between."""
_PATIENCE_S = 120.0
_HARMLESS = {"without_outcome", "torn"}
"""What a run that was killed may show until it goes on."""


def driver_kills(folder: Path, *, items: int, kills: int) -> dict[str, Any]:
    """SIGKILL to the process group of a run under Ray, again and again; then to its end without Ray.

    Args:
        folder: empty; takes photos and results.
        items: photos.
        kills: how many.

    Returns:
        Figures.

    Raises:
        FrDeployError: something was lost, done twice, torn, or differs from a run without Ray.
    """
    began, chance = time.monotonic(), random.Random(1)
    source, out = make_photos(folder / "in", items), folder / "out"
    gone: list[float] = []
    for turn in range(kills):
        with Run(source, out, "--ray") as run:
            before = ledger_lines(out)
            run.wait(lambda n=before: ledger_lines(out) > n, "a record")
            time.sleep(chance.uniform(0, 0.5))
            ours = [*family(run.process.pid)]
            run.kill()
        gone.append(until_gone(ours))
        found = report_of(out).counts
        if set(found) - _HARMLESS:
            raise FrDeployError(f"after {turn + 1} kills: {dict(found)}")
        if ledger_lines(out) == items:
            raise FrDeployError(f"all done after {turn + 1} kills: too fast for {kills}")
    with Run(source, out) as run:
        run.end()
    compare(source, out, folder / "embedded", items)
    return {
        "items": items,
        "driver_kills": kills,
        "longest_until_all_processes_gone_s": round(max(gone), 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def actor_kills(folder: Path, *, items: int, kills: int) -> dict[str, Any]:
    """SIGKILL to the actor of one run under Ray, again and again, while it goes on.

    Args, Returns, Raises: as `driver_kills`.
    """
    began, chance = time.monotonic(), random.Random(2)
    source, out = make_photos(folder / "in", items), folder / "out"
    with Run(source, out, "--ray") as run:
        for _ in range(kills):
            before = ledger_lines(out)
            run.wait(lambda n=before: ledger_lines(out) > n, "a record")
            time.sleep(chance.uniform(0, 0.3))
            run.wait(lambda: bool(actors_of(run)), "an actor")
            os.kill(actors_of(run)[0], signal.SIGKILL)
        run.end()
    compare(source, out, folder / "embedded", items)
    attempts = Counter(record.attempts for record in _records(out))
    return {
        "items": items,
        "actor_kills": kills,
        "items_begun_again": sum(count for times, count in attempts.items() if times > 1),
        "most_attempts": max(attempts),
        "seconds": round(time.monotonic() - began, 1),
    }


def actors_of(run: "Run") -> list[int]:
    """The actors of a run that live."""
    return [pid for pid, name in family(run.process.pid).items() if "ray::RayActor" in name]


class Run:
    """`serve-batch` in a session of its own; whatever is left of it is killed at the end."""

    def __init__(self, source: Path, out: Path, *more: str, device: str = SLOW) -> None:
        """Start it: aligned photos, a fake device, batches of two."""
        fixed = ["--aligned", "--device", device, "--batch", "2", "--progress", "none"]
        command = [sys.executable, "-m", "fr_deploy", "serve-batch", str(source), str(out)]
        self.process = subprocess.Popen(
            [*command, *fixed, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.process.communicate()

    def kill(self) -> None:
        """SIGKILL to the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_PATIENCE_S)

    def wait(self, true: Callable[[], bool], what: str, *, patience_s: float = _PATIENCE_S) -> None:
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
        said = self.process.communicate(timeout=10 * _PATIENCE_S)[0]
        if self.process.returncode != code:
            raise FrDeployError(f"exit code {self.process.returncode}: {said}")
        return said


def compare(source: Path, out: Path, whole: Path, items: int) -> None:
    """See that a run is complete, and equal to one by processes of this machine.

    Raises:
        FrDeployError: it is not.
    """
    found = report_of(out)
    if not found.ok or found.outcomes != items or ledger_lines(out) != items:
        raise FrDeployError(f"{found.outcomes} outcomes of {items}: {dict(found.counts)}")
    failures = [record.name for record in _records(out) if record.status != "restored"]
    if failures:
        raise FrDeployError(f"innocent photos failed: {failures[:5]}")
    with Run(source, whole, device="fake:1ms") as run:
        run.end()
    theirs, ours = outputs(whole), outputs(out)
    if theirs != ours:
        raise FrDeployError("outputs differ from those of a run without Ray")
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


def family(pid: int) -> dict[int, str]:
    """A process and all below it that live: what they are called."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
    return {each: names[each] for each in _below(pid, parents) if each in names}


def until_gone(pids: list[int]) -> float:
    """Seconds until processes have ended.

    Raises:
        FrDeployError: they stay.
    """
    began = time.monotonic()
    while left := [pid for pid in pids if _lives(pid)]:
        if time.monotonic() - began > _PATIENCE_S:
            raise FrDeployError(f"processes are left {_PATIENCE_S:g} s after the kill: {left}")
        time.sleep(0.05)
    return time.monotonic() - began


def _below(pid: int, parents: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in parents.get(pid, []):
        yield from _below(child, parents)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _records(out: Path) -> Iterator[Any]:
    from fr_deploy.batch.ledger import read_outcomes

    return read_outcomes(state_folder(out) / "ledger.jsonl")
