"""`fr-deploy serve-batch` in a process group of its own, as tests start, kill and check it."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fr_bench import killing
from fr_bench.killing import members as members  # for the tests of a run put together
from fr_bench.soak_runs import ledger_lines, records
from fr_deploy.batch.item import Record
from fr_deploy.batch.lines import read_lines

FAKE = "fake:1ms"
PATIENCE_S = 120
ANSWER_S = 10
"""A refusal takes no longer."""


def small_photo(seed: int, side: int = 32, kind: str = "PNG") -> bytes:
    """One aligned face of noise; another one for each seed."""
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def make_photos(folder: Path, count: int, side: int = 32) -> Path:
    """So many photos in folders of 100."""
    for index in range(count):
        place = folder / f"{index // 100:03}" / f"photo {index:05}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(small_photo(index, side))
    return folder


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fr_deploy", "serve-batch", *map(str, arguments)]


def batch(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    given = {"capture_output": True, "text": True, "timeout": PATIENCE_S} | more
    return subprocess.run(command(*arguments), check=False, **given)


def restore_aligned(source: Path, out: Path, *more: object, device: str = FAKE) -> Any:
    """Restore small aligned photos with a fake device."""
    return batch(source, out, "--aligned", "--device", device, "--progress", "none", *more)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


class Group(killing.Group):
    """A run in a session of its own; whatever is left of it is killed at the end."""

    def __init__(self, *arguments: object, **more: Any) -> None:
        super().__init__(command(*arguments), **more)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


def wait_until(true: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def state_of(out: Path) -> Path:
    return out / ".fr-deploy"


def begun_lines(out: Path) -> int:
    """Items begun in the last start: the file is written anew by each."""
    lines = read_lines(state_of(out) / "begun.jsonl")
    return sum(line.value is not None and "begun" in line.value for line in lines)


def results(out: Path) -> dict[str, str]:
    """SHA-256 of every file below a destination, but for the run's state."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".fr-deploy" not in path.relative_to(out).parts
    }


def check_standing(out: Path) -> list[Record]:
    """What the ledger says stands, once, and no file is torn; returns the records."""
    found = records(out)
    assert len({record.id for record in found}) == len(found)
    assert len(found) == ledger_lines(out), "an item has two outcomes"
    files = results(out)
    for record in found:
        for output in record.outputs:
            assert files.pop(output.path, None) == output.sha256, output.path
    assert not [name for name in files if name.endswith(".part")]
    return found


@contextlib.contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory if the machine has one: thousands of fsyncs on its disk take minutes."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_folder() as folder:
        yield folder
