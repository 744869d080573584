"""`fr-deploy serve-batch` while it is at work: signals, new photos, and a second run beside it."""

import os
import signal
import time
from pathlib import Path

import pytest

from batch_cli import (
    FAKE,
    Group,
    batch,
    begun_lines,
    check_standing,
    fast,
    ledger_lines,
    make_photos,
    results,
    small_photo,
    state_of,
    wait_until,
)

__all__ = ["fast"]  # a fixture


def test_a_second_run_at_the_same_time_is_refused(fast: Path) -> None:
    source, out = make_photos(fast / "in", 40), fast / "out"
    arguments = (source, out, "--aligned", "--device", "fake:500ms", "--batch", 1)
    with Group(*arguments, "--progress", "none") as run:
        wait_until(lambda: (state_of(out) / "run.json").exists(), "the run is begun")
        done = batch("resume", out, "--progress", "none")
        assert done.returncode == 2
        assert f"process {run.process.pid}" in done.stderr
        status = batch("status", out)
        assert f"at work: process {run.process.pid}" in status.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_saves_and_says_how_to_resume(fast: Path, number: int) -> None:
    source, out = make_photos(fast / "in", 60), fast / "out"
    arguments = (source, out, "--aligned", "--device", "fake:200ms", "--batch", 2)
    with Group(*arguments, "--progress", "none") as run:
        wait_until(lambda: ledger_lines(out) > 0, "a first record")
        began = time.monotonic()
        os.killpg(run.process.pid, number)  # as a terminal does it
        code, text, errors = run.ended()
        took = time.monotonic() - began
    assert code == 128 + number, errors
    assert "finishing what is in flight" in errors
    assert f"resume with: fr-deploy serve-batch resume {out}" in text
    assert took < 15
    found = check_standing(out)
    assert 0 < len(found) < 60
    begun = (state_of(out) / "begun.jsonl").read_text()
    assert '"ended"' in begun, "what was in flight is blamed for nothing"
    done = batch("resume", out, "--device", FAKE, "--progress", "none")
    assert done.returncode == 0, done.stderr
    assert len(check_standing(out)) == 60


def test_the_second_signal_stops_at_once(fast: Path) -> None:
    source, out = make_photos(fast / "in", 60), fast / "out"
    arguments = (source, out, "--aligned", "--device", "fake:9000ms", "--batch", 4)
    with Group(*arguments, "--progress", "none") as run:
        wait_until(lambda: begun_lines(out) > 0, "the first is begun")
        time.sleep(0.5)
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert run.process.poll() is None
        began = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        code, _, errors = run.ended()
    assert code == 130, errors
    assert time.monotonic() - began < 6
    check_standing(out)


def test_watching_takes_new_photos_until_it_is_ended(fast: Path) -> None:
    source, out = make_photos(fast / "in", 2), fast / "out"
    arguments = (source, out, "--aligned", "--device", FAKE, "--progress", "none", "--watch")
    with Group(*arguments) as run:
        wait_until(lambda: ledger_lines(out) == 2, "the first two")
        (source / "late.png").write_bytes(small_photo(7))
        (source / "late.part").write_bytes(b"is no photo by its name")
        wait_until(lambda: ledger_lines(out) == 3, "the one that came late")
        run.process.send_signal(signal.SIGTERM)
        code, text, errors = run.ended()
    assert code == 0, errors
    assert "3 done" in text
    assert sorted(results(out)) == ["000/photo 00000.png", "000/photo 00001.png", "late.png"]
    (source / "later.png").write_bytes(small_photo(8))
    with Group("resume", out, "--progress", "none") as run:
        wait_until(lambda: ledger_lines(out) == 4, "what came between two starts")
        run.process.send_signal(signal.SIGINT)
        assert run.ended()[0] == 0
