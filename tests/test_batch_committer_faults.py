"""The committer on a full disk, and killed: no outcome is lost, doubled or torn."""

import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from batch_records import Disk, begin, content, error_of, finished, item, start
from fr_deploy.batch.books import make_sink, open_books
from fr_deploy.batch.check import verify
from fr_deploy.batch.committer import Committer
from fr_deploy.batch.ledger import read_outcomes
from fr_deploy.batch.state import State
from fr_deploy.errors import ResourceError


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
