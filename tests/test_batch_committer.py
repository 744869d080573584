"""The committer: groups, order, errors that reach the parent, and no outcome lost or doubled by a kill."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batch_records import Disk, begin, content, finished, item, record, start
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


@pytest.mark.parametrize("short", [0, pytest.param(10, marks=pytest.mark.slow)])
def test_a_full_disk_reaches_the_parent_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """Then resume: nothing torn, nothing lost, nothing doubled."""
    last = 0
    for call in range(1000):
        destination = tmp_path / str(call)
        begin(destination, 12).close()
        disk = Disk(monkeypatch)
        full = commit_some(destination, disk, call, short)
        monkeypatch.undo()
        assert verify_files(destination)
        with State(destination / ".fr-deploy", write=False) as state:
            torn = verify(state).counts
            assert set(torn) <= {"without_outcome", "torn"}, torn
        commit_some(destination, None, 0, 0)
        with State(destination / ".fr-deploy", write=False) as state:
            report = verify(state)
            assert report.ok, report.examples
            assert report.outcomes == 12
        if not full:
            last = call
            break
    assert 12 <= last < 100


def verify_files(destination: Path) -> bool:
    """Each file that has an output's name is whole."""
    return all(
        path.read_bytes() == content(index)
        for index in range(12)
        if (path := destination / item(index).output).exists()
    )


def commit_some(destination: Path, disk: Disk | None, call: int, short: int) -> bool:
    """Commit what is not done yet, the disk being full from one call on; True if that was met."""
    if disk:
        disk.fail_at, disk.short = call, short
    error: ResourceError | None = None
    with ExitStack() as stack:
        try:
            state = stack.enter_context(State(destination / ".fr-deploy"))
            books = open_books(state)
            stack.callback(books.close)
            sink = make_sink(state, books)
            committer = Committer(books.ledger, sink, books.journal, lambda _: None, group=4)
            stack.callback(lambda: error_of(committer.close))
            for it in state.read_list(skip=books.ledger.is_done):
                books.begun.begin(it.index, 1, False)
                committer.put(finished(books.part_folder, it.index))
            committer.close()
        except ResourceError as caught:
            error = caught
    assert error is None or (disk and error.exit_code == 6 and "disk is full" in str(error)), error
    return error is not None


def error_of(action: Callable[[], None]) -> ResourceError | None:
    try:
        action()
    except ResourceError as error:
        return error
    return None


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


RUN = """
import sys
from pathlib import Path
from batch_records import begin, finished
from fr_deploy.batch.books import make_sink, open_books
from fr_deploy.batch.committer import Committer
from fr_deploy.batch.state import State
destination, count, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
state = State(destination / ".fr-deploy")
books = open_books(state)
committer = Committer(books.ledger, make_sink(state, books), books.journal, lambda _: None,
                      begun=books.begun, group=8, gather_seconds=0.005)
print("up", flush=True)
for item in state.read_list(skip=books.ledger.is_done):
    books.begun.begin(item.index, 1, False)
    print(item.index, flush=True)
    committer.put(finished(books.part_folder, item.index))
committer.close()
books.close()
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tree", "tar"])
def test_a_run_killed_20_times_loses_and_doubles_nothing(
    tmp_path: Path, record_property: Any, kind: str
) -> None:
    count, rng = 1500, random.Random(6)
    sink = {"kind": "tree"} if kind == "tree" else {"kind": "tar", "items": 40}
    begin(tmp_path, count, sink=sink).close()
    begun: Counter[int] = Counter()
    kills, held = 0, 32 + 2 * 8 + (40 if kind == "tar" else 0)
    while True:
        process = start(RUN, tmp_path, count, kind)
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        if kills < 20:
            time.sleep(rng.uniform(0.0, 0.1))
            process.kill()
        words = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        begun.update(int(word) for word in words if word != b"done")
        with State(tmp_path / ".fr-deploy", write=False) as state:
            outcomes = [r.index for r in read_outcomes(state.ledger_path)]
            assert len(set(outcomes)) == len(outcomes)
            assert outcomes == sorted(outcomes)
            if kills >= 20:
                break
        kills += 1
    assert words[-1:] == [b"done"]
    with State(tmp_path / ".fr-deploy", write=False) as state:
        report = verify(state)
        assert report.ok, report.examples
        assert (report.items, report.outcomes, report.files) == (count, count, count)
    again = sum(begun.values()) - count
    record_property("figure", f"20 kills, {kind}: {again} of {count} items begun again")
    assert 0 < again <= 20 * held
