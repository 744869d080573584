"""An export that is killed, again and again, and then completes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export_cases import tiny_bundle
from fr_deploy.manifest import FILE, PARTS
from fr_export.state import FOLDER, file_sha256

KILLS = 10


def start(bundle: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fr_deploy", "export", str(bundle), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def digests(folder: Path) -> dict[str, str]:
    """Of what lies there under a final name."""
    files = [folder / f"{name}.onnx" for name in PARTS]
    return {path.name: file_sha256(path) for path in files if path.is_file()}


def made(folder: Path) -> dict[str, int]:
    """When each finished file was made."""
    names = [f"{name}.onnx" for name in PARTS]
    done = [name for name in names if (folder / FOLDER / f"{name}.json").is_file()]
    return {name: (folder / name).stat().st_mtime_ns for name in done}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_completes(tmp_path: Path) -> None:
    """Each run lasts a random part of what a whole one takes."""
    bundle, right, out = tiny_bundle(tmp_path / "bundle"), tmp_path / "right", tmp_path / "out"
    began = time.monotonic()
    assert start(bundle, right).wait() == 0
    whole, wanted = time.monotonic() - began, digests(right)
    assert len(wanted) == len(PARTS)
    moments = random.Random(0)
    finished: dict[str, int] = {}
    for _ in range(KILLS):
        process = start(bundle, out)
        try:
            process.wait(moments.uniform(0, whole))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            assert digests(out).items() <= wanted.items(), "a torn file"
            now = made(out)
            assert finished.items() <= now.items(), "a finished file was made again"
            finished = now
    process = start(bundle, out)
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()
    assert digests(out) == wanted
    assert finished.items() <= made(out).items()
    assert {p.name for p in out.iterdir()} == {FILE, FOLDER, *wanted}
