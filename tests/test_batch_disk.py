"""A disk that is full at several moments, and one that cannot be written: exit 6, nothing torn, resumed later."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_cli import (
    FAKE,
    batch,
    check_standing,
    make_photos,
    restore_aligned,
    results,
    state_of,
)

SIZE = 64 * 2**20
ITEMS = 60
RESERVE = [0, 16, 100, 400, 1_000]
"""Free KiB when the run starts: full at once, in the list or the ledger, after a few outputs, after many."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0755", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))
    return filler


@pytest.mark.slow
def test_full_at_several_moments(tmp_path: Path, small_disk: Path, record_property: Any) -> None:
    source = make_photos(tmp_path / "in", ITEMS, side=64)
    assert restore_aligned(source, tmp_path / "whole").returncode == 0
    stood: list[int] = []
    for kib in RESERVE:
        out = small_disk / f"out {kib}"
        filler = fill(small_disk, leave=kib * 1024)
        done = restore_aligned(source, out)
        assert done.returncode == 6, f"{kib} KiB: {done.stderr}"
        assert "disk is full" in done.stderr
        stood.append(len(check_standing(out)) if state_of(out).exists() else 0)
        filler.unlink()
        done = restore_aligned(source, out)
        assert done.returncode == 0, done.stderr
        assert results(out) == results(tmp_path / "whole")
        assert len(check_standing(out)) == ITEMS
        subprocess.run(["rm", "-rf", str(out)], check=True)
    record_property("figure", f"disk full with {RESERVE} KiB left: {stood} of {ITEMS} items stood")
    assert stood[0] == 0
    assert 0 < stood[-1] < ITEMS


@pytest.mark.slow
def test_full_tar_shards(tmp_path: Path, small_disk: Path) -> None:
    source, out = make_photos(tmp_path / "in", ITEMS, side=64), small_disk / "out"
    filler = fill(small_disk, leave=400 * 1024)
    done = restore_aligned(source, out, "--sink", "tar")
    assert done.returncode == 6, done.stderr
    filler.unlink()
    assert batch("resume", out, "--progress", "none").returncode == 0
    verified = batch("verify", out)
    assert f"{ITEMS} photos, {ITEMS} outcomes, {ITEMS} files" in verified.stdout


def test_a_disk_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, small_disk: Path
) -> None:
    source, out = make_photos(tmp_path / "in", 3), small_disk / "out"
    out.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for more in ([], ["--state", tmp_path / "state"]):
        done = batch(source, out, "--aligned", "--device", FAKE, *more)
        assert done.returncode == 6, done.stderr
        assert "Read-only file system" in done.stderr
    assert not (tmp_path / "state" / "items.jsonl").exists(), "not even the list was made"


def test_a_file_where_the_destination_should_be(tmp_path: Path) -> None:
    source, out = make_photos(tmp_path / "in", 1), tmp_path / "out"
    out.write_text("mine")
    done = restore_aligned(source, out)
    assert done.returncode == 2, done.stderr
    assert out.read_text() == "mine"
