"""The committer: groups, order, and errors that reach the parent."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch_records import Disk, begin, content, finished, item, record
from fr_deploy.batch.begun import Begun
from fr_deploy.batch.books import make_sink, open_books
from fr_deploy.batch.check import verify
from fr_deploy.batch.committer import Committer
from fr_deploy.batch.item import Record
from fr_deploy.batch.ledger import read_outcomes, read_tally
from fr_deploy.batch.lines import read_lines
from fr_deploy.batch.state import State
from fr_deploy.batch.work import Finished
from fr_deploy.errors import ResourceError


class Run:
    """A run's books with a committer, and what it reported."""

    def __init__(self, state: State, **more: Any) -> None:
        self.state, self.books = state, open_books(state)
        self.groups: list[list[Record]] = []
        sink = make_sink(state, self.books)
        more.setdefault("begun", self.books.begun)
        on_committed = more.pop("on_committed", self.groups.append)
        self.committer = Committer(
            self.books.ledger, sink, self.books.journal, on_committed, **more
        )

    def finished(self, index: int, *paths: str, data: bytes | None = None) -> Finished:
        return finished(self.books.part_folder, index, *paths, data=data)

    def close(self) -> list[Record]:
        self.committer.close()
        self.books.close()
        self.state.close()
        return list(read_outcomes(self.state.ledger_path))


def test_outcomes_are_durable_and_told_once(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 100))
    for index in range(100):
        done = run.finished(index) if index % 3 else record(index, status="failed", reason="x")
        run.committer.put(done)
    outcomes = run.close()
    told = [r for group in run.groups for r in group]
    assert [r.index for r in told] == list(range(100))
    assert told == outcomes
    assert all(abs(time.time() - r.at) < 100 and r.host == os.uname().nodename for r in told)
    for index in range(100):
        path = tmp_path / item(index).output
        assert not path.exists() if index % 3 == 0 else path.read_bytes() == content(index)
    assert not list(run.books.part_folder.iterdir())
    assert verify(State(tmp_path / ".fr-deploy", write=False)).ok


def test_an_outcome_alone_is_committed_at_once(tmp_path: Path) -> None:
    told = threading.Event()
    run = Run(begin(tmp_path, 2), on_committed=lambda _: told.set(), gather_seconds=30)
    run.committer.put(record(0))
    assert told.wait(10)
    run.close()


def test_a_group_costs_three_fsyncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """The journal, the folder, the ledger: however many items there are."""
    run = Run(begin(tmp_path, 400), gather_seconds=5.0)
    dones = [run.finished(i, f"{i}.png") for i in range(321)]
    run.committer.put(dones[0])
    run.committer.flush()  # from here on, commits follow each other
    disk = Disk(monkeypatch)
    for done in dones[1:]:
        run.committer.put(done)
    run.committer.flush()
    assert len(run.groups) <= 7
    assert max(map(len, run.groups)) == 64
    assert disk.syncs == 3 * (len(run.groups) - 1)
    record_property("figure", f"320 items are committed with {disk.syncs} fsyncs")
    monkeypatch.undo()
    assert len(run.close()) == 321


def test_a_group_waits_for_others_while_busy(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 10), gather_seconds=1.0)
    run.committer.put(record(0))
    run.committer.flush()
    for index in range(1, 9):
        run.committer.put(record(index))
        time.sleep(0.01)
    run.close()
    assert [len(g) for g in run.groups] in ([1, 8], [1, 7, 1])


def test_errors_are_raised_by_put_flush_and_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(begin(tmp_path, 1000))
    disk = Disk(monkeypatch)
    disk.full = True
    with pytest.raises(ResourceError, match="disk is full"):
        put_all(run.committer, 1000)  # more than the queue holds: it must not wait for ever
    for call in (run.committer.flush, run.committer.close, run.committer.close):
        with pytest.raises(ResourceError, match="disk is full"):
            call()
    assert isinstance(run.committer.error, ResourceError)
    monkeypatch.undo()
    run.state.close()
    assert len(read_tally(run.state.ledger_path).done) == 0


def put_all(committer: Committer, count: int) -> None:
    for index in range(count):
        committer.put(record(index))


def test_an_error_of_the_callback_ends_the_run(tmp_path: Path) -> None:
    def fail(_: list[Record]) -> None:
        raise RuntimeError("a bug")

    run = Run(begin(tmp_path, 2), on_committed=fail)
    run.committer.put(record(0))
    with pytest.raises(RuntimeError, match="a bug"):
        run.committer.close()
    run.state.close()
    assert list(read_tally(run.state.ledger_path).done) == [0]


def test_one_item_that_cannot_be_placed_is_one_failure(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    (tmp_path / "there.png").write_bytes(b"mine")
    run = Run(begin(tmp_path, 4))
    run.committer.put(run.finished(0, "taken/a.png"))
    run.committer.put(run.finished(1, "there.png", data=b"other"))
    run.committer.put(run.finished(2, "fine.png"))
    outcomes = run.close()
    reasons = [(r.status, r.reason) for r in outcomes]
    assert reasons == [("failed", "unwritable"), ("failed", "exists"), ("restored", "")]
    assert (tmp_path / "there.png").read_bytes() == b"mine"
    assert not list(run.books.part_folder.iterdir())


def test_a_record_that_is_no_json_is_one_failure(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 2))
    bad = run.finished(0)
    bad.record.faces = [{"score": np.float32(0.5)}]
    run.committer.put(bad)
    run.committer.put(run.finished(1))
    outcomes = run.close()
    assert [(r.status, r.reason) for r in outcomes] == [("failed", "unexpected"), ("restored", "")]
    assert "float32" in outcomes[0].message
    assert not (tmp_path / item(0).output).exists()


def test_a_second_outcome_ends_the_run(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 2))
    run.committer.put(record(0))
    run.committer.put(record(0))
    with pytest.raises(ValueError, match="second outcome"):
        run.committer.close()
    run.state.close()


def returned(path: Path) -> set[int]:
    values = [line.value for line in read_lines(path) if line.value]
    return {index for value in values for index in value.get("returned", [])}


def test_items_in_an_open_shard_are_no_orphans(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 5, sink={"kind": "tar", "items": 100}))
    for index in range(3):
        run.books.begun.begin(index, 1, False)
        if index < 2:
            run.committer.put(run.finished(index))
    deadline = time.monotonic() + 60
    path = run.state.begun_path
    while returned(path) != {0, 1}:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.01)
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())  # as it would be found after a kill
    again = Begun(copy, read_tally(run.state.ledger_path))
    assert [again.orphans(i) for i in range(3)] == [0, 0, 1]
    assert not read_tally(run.state.ledger_path).done
    run.committer.flush()  # closes the shard
    assert list(read_tally(run.state.ledger_path).done) == [0, 1]
    run.close()


def test_parts_left_by_killed_children_are_removed(tmp_path: Path) -> None:
    run = Run(begin(tmp_path, 2))
    run.committer.put(run.finished(0))
    (run.books.part_folder / "0123-1.part").write_bytes(b"half")
    run.close()
    assert not list(run.books.part_folder.iterdir())
