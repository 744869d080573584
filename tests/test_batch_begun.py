"""What was begun and has no outcome: who is blamed for the end of a run, and who is not."""

import os
from pathlib import Path

import pytest

from batch_records import Disk
from fr_deploy.batch.begun import Begun
from fr_deploy.batch.ledger import Tally
from fr_deploy.errors import ResourceError


def killed_run(path: Path, tally: Tally, *indexes: int, alone: bool = False) -> Begun:
    """A run that begins items and is killed."""
    begun = Begun(path, tally)
    for index in indexes:
        begun.begin(index, 1, alone)
    return begun


def test_three_orphans_are_run_alone_and_three_more_given_up(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    for _ in range(3):
        assert Begun(path, tally).verdict(7) == "run"
        killed_run(path, tally, 7, 8)
        tally.done.add(8)
    for _ in range(3):
        begun = Begun(path, tally)
        assert begun.verdict(7) == "alone"
        assert begun.verdict(8) == "run"
        killed_run(path, tally, 7, alone=True)
    begun = Begun(path, tally)
    assert (begun.verdict(7), begun.orphans(7), begun.suspects) == ("give_up", 6, 1)


def test_a_run_counts_once_however_often_it_began_an_item(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    begun = Begun(path, tally)
    for attempt in range(1, 6):
        begun.begin(1, attempt, False)
    assert Begun(path, tally).orphans(1) == 1


def test_a_run_that_ended_in_order_blames_nobody(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    for _ in range(5):
        killed_run(path, tally, 1).close()
    assert Begun(path, tally).orphans(1) == 0
    killed_run(path, tally, 1).close(orderly=False)
    assert Begun(path, tally).orphans(1) == 1


def test_items_that_were_returned_are_no_orphans(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    begun = killed_run(path, tally, 1, 2, 3)
    begun.returned([1, 3, 99])
    again = Begun(path, tally)
    assert [again.orphans(i) for i in (1, 2, 3)] == [0, 1, 0]


def test_kills_from_outside_need_ten_orphans(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 1, 2, alone=True)
    Begun(path, tally).close()
    tally.done.add(2)  # it was alone in a run that was killed, and succeeded later
    for run in range(2, 11):
        begun = killed_run(path, tally, 1, alone=True)
        assert begun.outside
        assert begun.verdict(1) == ("run" if run < 4 else "alone")
    assert Begun(path, tally).verdict(1) == "give_up"


def test_an_item_that_failed_proves_no_kill_from_outside(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 2, alone=True)
    Begun(path, tally).close()
    tally.done.add(2)
    tally.failed.add(2)
    assert not Begun(path, tally).outside


def test_begun_is_compacted(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 5)
    begun = Begun(path, tally, compact_bytes=20_000)
    largest = 0
    for index in range(10, 20_000):
        begun.begin(index, 1, False)
        if index > 12:
            tally.done.add(index - 2)
        largest = max(largest, path.stat().st_size) if index % 50 == 0 else largest
    assert largest < 260_000  # at most 4096 beginnings are kept that have an outcome
    again = Begun(path, tally)
    orphans = [i for i in range(20_000) if again.orphans(i)]
    assert orphans == [5, 10, 19_998, 19_999]
    assert path.stat().st_size < 300


def test_torn_and_damaged_notes_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # pyright: ignore[reportUnknownLambdaType]
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 1, 2)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        begun = Begun(path, tally)
        assert [begun.orphans(1), begun.orphans(2)] in ([0, 0], [1, 0])
    path.write_bytes(whole.replace(b"[2,", b"[3,"))
    assert Begun(path, tally).orphans(3) == 0


def test_noting_what_is_begun_costs_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Begun(tmp_path / "begun.jsonl", Tally())
    disk = Disk(monkeypatch)
    for index in range(100):
        begun.begin(index, 1, False)
    assert (disk.writes, disk.syncs) == (100, 0)
    disk.full = True
    with pytest.raises(ResourceError, match="disk is full"):
        begun.begin(100, 1, False)
    begun.close()
