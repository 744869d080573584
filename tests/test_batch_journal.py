"""The journal: a commit is finished from wherever it was killed, or was none."""

import os
from pathlib import Path

import pytest

from batch_records import Disk, content, finished, record
from batch_sinks import files, finish, journal_of, members, parts, tar_sink, tree
from fr_deploy.batch.journal import Entry, Journal, Move
from fr_deploy.batch.ledger import Ledger
from fr_deploy.batch.lines import encode_line
from fr_deploy.batch.place import Placer
from fr_deploy.errors import ResourceError

__all__ = ["parts"]  # a fixture


@pytest.mark.parametrize("placed", [0, 1, 2, 3])
def test_a_commit_is_finished_from_any_point(tmp_path: Path, parts: Path, placed: int) -> None:
    sink = tree(tmp_path)
    done = [finished(parts, 1, "a/1.png", "a/2.png"), finished(parts, 2, "b.png")]
    entries = [entry for d in done for entry in sink.add(d)]
    journal_of(tmp_path, entries)
    moves = [move for entry in entries for move in entry.moves]
    for move in moves[:placed]:  # then it is killed
        Placer(tmp_path / "out").place(Path(move.part), move.path, replace=False)
    assert finish(tmp_path) == (2, [d.record for d in done])
    assert files(tmp_path / "out") == {
        "a/1.png": content(1),
        "a/2.png": content(1),
        "b.png": content(2),
    }
    assert not files(parts)
    assert finish(tmp_path) == (0, [d.record for d in done])


def test_killed_between_link_and_unlink(tmp_path: Path, parts: Path) -> None:
    (entry,) = tree(tmp_path).add(finished(parts, 1, "a.png"))
    journal_of(tmp_path, [entry])
    os.link(entry.moves[0].part, tmp_path / "out" / "a.png")
    assert finish(tmp_path)[0] == 1
    assert not files(parts)


def test_what_cannot_be_finished_runs_again(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    entries = [sink.add(finished(parts, i, f"{i}.png", data=b"good"))[0] for i in range(4)]
    journal_of(tmp_path, entries)
    os.unlink(entries[0].moves[0].part)  # gone
    os.unlink(entries[1].moves[0].part)  # gone, and another of the same size is there
    (tmp_path / "out" / "1.png").write_bytes(b"evil")
    (tmp_path / "out" / "2.png").write_bytes(b"evil")  # made by others before it could be placed
    count, outcomes = finish(tmp_path)
    assert (count, [r.index for r in outcomes]) == (1, [3])
    assert (tmp_path / "out" / "2.png").read_bytes() == b"evil"


def test_a_commit_in_the_ledger_is_not_repeated(tmp_path: Path, parts: Path) -> None:
    (entry,) = tree(tmp_path).add(finished(parts, 1, "a.png"))
    journal_of(tmp_path, [entry])
    ledger = Ledger(tmp_path / "ledger")
    ledger.append(entry.records)
    ledger.close()
    assert finish(tmp_path) == (0, entry.records)


def test_a_torn_journal_is_no_commit(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # pyright: ignore[reportUnknownLambdaType]
    (entry,) = tree(tmp_path).add(finished(parts, 1, "a.png"))
    journal_of(tmp_path, [entry])
    path = tmp_path / "journal"
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        assert Journal(path).left() == []
    path.write_bytes(whole)
    assert Journal(path).left() == [entry]
    path.write_bytes(
        encode_line({"entries": []}) + whole
    )  # rewritten, and killed before it was cut
    assert Journal(path).left() == []


def test_the_journal_is_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    disk = Disk(monkeypatch)
    for count in (5, 1, 3):
        journal.write([Entry([Move("/p", "a", 1)], [record(i)]) for i in range(count)])
        assert [e.records[0].index for e in journal.left()] == list(range(count))
    assert (disk.writes, disk.syncs) == (3, 3)
    disk.full = True
    with pytest.raises(ResourceError, match="disk is full"):
        journal.write([Entry([], [record(1)])])
    assert journal.left() == []


@pytest.mark.parametrize("placed", [False, True])
def test_a_shard_is_finished_after_a_kill(tmp_path: Path, placed: bool) -> None:
    sink = tar_sink(tmp_path)
    for index in range(4):
        sink.add(finished(tmp_path / "parts", index))
    (entry,) = sink.flush()
    journal_of(tmp_path, [entry])
    if placed:
        sink.place(entry)
        ledger = Ledger(tmp_path / "ledger")  # its group was torn: one outcome is there
        ledger.append(entry.records[2:3])
        ledger.close()
    count, outcomes = finish(tmp_path)
    assert count == (3 if placed else 4)
    assert sorted(r.index for r in outcomes) == [0, 1, 2, 3]
    (shard,) = (tmp_path / "out").iterdir()
    assert len(members(shard)) == 4
