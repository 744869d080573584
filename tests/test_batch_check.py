"""verify, repair and status: whatever was damaged is found, and made again by the next run."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from batch_records import begin, content, finished, item, record
from fr_deploy.batch.books import make_sink, open_books
from fr_deploy.batch.check import EXAMPLES, Report, repair, verify
from fr_deploy.batch.committer import Committer
from fr_deploy.batch.item import Record
from fr_deploy.batch.ledger import Ledger, read_outcomes, read_tally
from fr_deploy.batch.lines import encode_line
from fr_deploy.batch.lock import Holder
from fr_deploy.batch.state import State
from fr_deploy.batch.status import status
from fr_deploy.errors import ModelError

TREE: dict[str, object] = {"kind": "tree"}
TAR: dict[str, object] = {"kind": "tar", "items": 4}


def resume(destination: Path, count: int | None = None) -> int:
    """Do what has no outcome; returns how many items that were. Every 5th has no face."""
    with State(destination / ".fr-deploy") as state:
        books = open_books(state)
        sink = make_sink(state, books)
        committer = Committer(books.ledger, sink, books.journal, lambda _: None)
        worked = 0
        for it in state.read_list(skip=books.ledger.is_done):
            if worked == count:
                break
            bare = it.index % 5 == 0
            committer.put(record(it.index) if bare else finished(books.part_folder, it.index))
            worked += 1
        committer.close()
        books.close()
    return worked


def done_run(destination: Path, sink: dict[str, object], count: int = 12) -> Path:
    begin(destination, count, sink=sink).close()
    assert resume(destination) == count
    return destination


def check(destination: Path) -> Report:
    with State(destination / ".fr-deploy", write=False) as state:
        return verify(state)


def mend(destination: Path) -> int:
    with State(destination / ".fr-deploy") as state:
        return repair(state, verify(state))


def kinds(report: Report) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in report.examples:
        found.setdefault(problem.kind, []).append(problem.name)
    assert {kind: len(names) for kind, names in found.items()} == dict(report.counts)
    return found


@pytest.mark.parametrize("sink", [TREE, TAR], ids=["tree", "tar"])
def test_a_whole_run_is_well(tmp_path: Path, sink: dict[str, object]) -> None:
    report = check(done_run(tmp_path, sink))
    assert report.ok
    assert (report.items, report.outcomes, report.files) == (12, 12, 9)
    assert report.size == sum(len(content(i)) for i in range(12) if i % 5)


def test_missing_and_corrupt_outputs_are_made_again(tmp_path: Path) -> None:
    done_run(tmp_path, TREE)
    (tmp_path / item(1).output).unlink()
    longer, flipped = tmp_path / item(2).output, tmp_path / item(7).output
    longer.write_bytes(content(2) + b"x")
    flipped.write_bytes(content(7)[:-1] + bytes([content(7)[-1] ^ 1]))
    (tmp_path / item(8).output).unlink()
    (tmp_path / item(8).output).mkdir()
    assert kinds(check(tmp_path)) == {
        "missing": [item(1).name],
        "corrupt": [item(2).name, item(7).name, item(8).name],
    }
    (tmp_path / item(8).output).rmdir()
    assert mend(tmp_path) == 4
    redone = kinds(check(tmp_path))
    assert list(redone) == ["without_outcome"]
    assert len(redone["without_outcome"]) == 4
    assert resume(tmp_path) == 4
    report = check(tmp_path)
    assert report.ok, report.examples
    assert mend(tmp_path) == 0


@pytest.mark.parametrize("how", ["gone", "flipped", "torn", "no tar"])
def test_damaged_shards_are_made_again(tmp_path: Path, how: str) -> None:
    done_run(tmp_path, TAR)
    shard = tmp_path / "results-000001.tar"
    data = bytearray(shard.read_bytes())
    with State(tmp_path / ".fr-deploy", write=False) as state:
        inside = [r for r in read_outcomes(state.ledger_path) if shard.name in str(r.outputs)]
    assert len(inside) == 4
    if how == "gone":
        shard.unlink()
    else:
        data[512] ^= 1  # of the first member's bytes
        short = data[: 512 + len(content(inside[0].index)) // 2]
        shard.write_bytes({"flipped": data, "torn": short, "no tar": b"x" * 5000}[how])
    report = check(tmp_path)
    broken = 1 if how == "flipped" else 4
    assert len(report.broken) == broken == report.counts.total()
    assert inside[0].index in report.broken
    assert mend(tmp_path) == broken
    assert resume(tmp_path) == broken
    assert check(tmp_path).ok
    names = [r.outputs[0].path for r in inside[:1]]
    assert names != [  # it is in another shard now
        r.outputs[0].path for r in outcomes_of(tmp_path) if r.index == inside[0].index
    ]


def outcomes_of(destination: Path) -> list[Record]:
    return list(read_outcomes(destination / ".fr-deploy" / "ledger.jsonl"))


def test_items_without_outcome_and_torn_parts(tmp_path: Path) -> None:
    begin(tmp_path, 6).close()
    resume(tmp_path, 4)
    parts = tmp_path / ".fr-deploy" / "parts"
    (parts / "0123-4.part").write_bytes(b"half")
    torn = tmp_path / "folder-1" / ".0123456789abcdef.part"
    torn.write_bytes(b"half")
    (tmp_path / "mine.part").write_bytes(b"no business of ours")
    assert kinds(check(tmp_path)) == {
        "without_outcome": [item(4).name, item(5).name],
        "torn": [str(parts / "0123-4.part"), str(torn.resolve())],
    }
    torn.unlink()
    assert resume(tmp_path) == 2
    assert check(tmp_path).ok


@pytest.mark.parametrize("journal", [True, False])
def test_damaged_lines_are_moved_aside(tmp_path: Path, journal: bool) -> None:
    """The journal still holds the last commit, and gives back what the ledger lost of it."""
    done_run(tmp_path, TREE)
    if not journal:
        assert resume(tmp_path) == 0  # clears it
    path = tmp_path / ".fr-deploy" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    bad = lines[3].replace(b"photo", b"photO")
    path.write_bytes(b"".join([*lines[:3], bad, *lines[4:], lines[11][:20]]))
    report = check(tmp_path)
    lost = item(3).name
    assert report.counts == {"damaged_line": 2, "without_outcome": 1}
    assert [p.name for p in report.examples if p.kind == "without_outcome"] == [lost]
    assert mend(tmp_path) == 0
    assert (tmp_path / ".fr-deploy" / "ledger.damaged").read_bytes() == bad + lines[11][:20]
    # If it runs again, its output is there, of the same bytes.
    assert resume(tmp_path) == (0 if journal else 1)
    assert check(tmp_path).ok


def test_second_outcomes_and_strangers(tmp_path: Path) -> None:
    done_run(tmp_path, TREE, 4)
    with (tmp_path / ".fr-deploy" / "ledger.jsonl").open("ab") as file:
        file.write(encode_line(record(2).to_json()))
        file.write(encode_line(record(9).to_json()))
    report = check(tmp_path)
    assert report.counts == {"second_outcome": 1, "stranger": 1}
    assert report.examples[-1].name == item(9).name


def test_a_changed_list_is_no_basis(tmp_path: Path) -> None:
    done_run(tmp_path, TREE, 4)
    with (tmp_path / ".fr-deploy" / "items.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(ModelError, match="was changed"):
        check(tmp_path)


def test_all_problems_are_counted_and_some_named(tmp_path: Path) -> None:
    done_run(tmp_path, TREE, 100)
    for index in range(100):
        if index % 5:
            (tmp_path / item(index).output).unlink()
    report = check(tmp_path)
    assert report.counts == {"missing": 80}
    assert len(report.examples) == EXAMPLES
    assert len(report.broken) == 80
    assert mend(tmp_path) == 80
    assert resume(tmp_path) == 80
    assert check(tmp_path).ok


def test_verify_changes_nothing_and_waits_for_nobody(tmp_path: Path) -> None:
    done_run(tmp_path, TREE)
    with State(tmp_path / ".fr-deploy") as running:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        (tmp_path / ".fr-deploy" / "parts" / "1-1.part").write_bytes(b"at work")
        assert check(tmp_path).ok  # while a run is at work, its parts are not torn
        assert running.locked
        (tmp_path / ".fr-deploy" / "parts" / "1-1.part").unlink()
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        changed = {p.name for p in after if after[p] != before.get(p)}
        assert changed <= {"parts"}


def test_status_counts(tmp_path: Path) -> None:
    begin(tmp_path, 50).close()
    ledger = Ledger(tmp_path / ".fr-deploy" / "ledger.jsonl")
    start = 1.0e9
    for index in range(40):  # 20 s apart, then 0.5 s
        at = start + 20 * min(index, 10) + 0.5 * max(0, index - 10)
        more = {"status": "failed", "reason": "truncated"} if index == 3 else {}
        ledger.append([record(index, at=at, faces=[{}, {}] if index == 4 else [], **more)])
    ledger.redo([record(39)], "x")
    ledger.close()
    with State(tmp_path / ".fr-deploy", write=False) as state:
        found = status(state)
        assert (found.items, found.outcomes, found.remaining) == (50, 39, 11)
        assert found.by_status == Counter(no_face=38, failed=1)
        assert found.by_reason == Counter(truncated=1)
        assert found.faces == 2
        assert (found.first_at, found.last_at) == (start, start + 214)
        assert found.per_second == pytest.approx((28 + 3) / 60, abs=0.02)
        assert found.holder is None
        assert found.as_json()["by_status"] == {"no_face": 38, "failed": 1}
    with State(tmp_path / ".fr-deploy"), State(tmp_path / ".fr-deploy", write=False) as state:
        found = status(state)
        assert found.holder == Holder(os.getpid(), os.uname().nodename)
        assert found.per_second == 0.0  # of a minute up to now
        assert found.as_json()["holder"]["pid"] == os.getpid()


def test_status_of_a_run_at_work(tmp_path: Path) -> None:
    with begin(tmp_path, 5) as running:
        empty = status(running)
        assert (empty.outcomes, empty.per_second, empty.first_at) == (0, 0.0, 0.0)
        ledger = Ledger(running.ledger_path)
        ledger.append([record(i, at=time.time() - 5) for i in range(3)])
        assert 0.05 < status(running).per_second < 0.61
        assert read_tally(running.ledger_path).counts.total() == 3
