"""The whole process group is killed, again and again: nothing is lost, done twice, or half written."""

import random
import time
from pathlib import Path
from typing import Any

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
    restore_aligned,
    results,
    state_of,
    wait_until,
)

__all__ = ["fast"]  # a fixture

ITEMS, KILLS = 500, 50
SLOW = "fake:60ms+10ms"
BATCH = 2
IN_FLIGHT = 2 * BATCH + 2 * (1 + 1)
"""As `pace_of` has it for one device, one preparer and one finisher."""


def one_start(source: Path, out: Path, chance: random.Random) -> int:
    """Start, wait for the first record of this start, wait a little, kill; how many items were begun."""
    before = ledger_lines(out)
    arguments = (source, out, "--aligned", "--device", SLOW, "--batch", BATCH, "--progress", "none")
    with Group(*arguments, "--preparers", 1, "--finishers", 1) as run:
        wait_until(
            lambda: ledger_lines(out) > before or run.process.poll() is not None, "a first record"
        )
        time.sleep(chance.uniform(0, 0.5))
        run.kill()
    return begun_lines(out)


@pytest.mark.slow
def test_fifty_kills_of_the_group(fast: Path, record_property: Any) -> None:
    source, out, whole = make_photos(fast / "in", ITEMS), fast / "out", fast / "whole"
    chance = random.Random(1)
    begun = kills = 0
    while kills < KILLS:
        begun += one_start(source, out, chance)
        kills += 1
        found = check_standing(out)
        assert len(found) < ITEMS, (
            f"all done after {kills} kills: too fast to be killed {KILLS} times"
        )
    done = batch("resume", out, "--progress", "none")
    assert done.returncode == 0, done.stderr
    begun += begun_lines(out)
    assert len(check_standing(out)) == ITEMS
    again = begun - ITEMS
    record_property(
        "figure",
        f"{kills} SIGKILLs of the group: {again} of {ITEMS} items begun again, {again / kills:.1f} a kill",
    )
    assert again <= 2 * IN_FLIGHT * kills
    assert batch("verify", out).returncode == 0
    assert not list((state_of(out) / "parts").iterdir())
    assert restore_aligned(source, whole).returncode == 0
    assert results(out) == results(whole)


def test_a_run_killed_twice_ends_as_one_that_was_not(fast: Path) -> None:
    source, out, whole = make_photos(fast / "in", 24), fast / "out", fast / "whole"
    for _ in range(2):
        one_start(source, out, random.Random(2))
        check_standing(out)
    assert batch("resume", out, "--device", FAKE, "--progress", "none").returncode == 0
    assert restore_aligned(source, whole).returncode == 0
    assert len(check_standing(out)) == 24
    assert results(out) == results(whole)
