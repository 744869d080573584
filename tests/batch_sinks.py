"""Sinks filled by hand, and what they wrote, for tests of sinks and of the journal."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from batch_records import finished
from fr_deploy.batch.item import Record
from fr_deploy.batch.journal import Entry, Journal, finish_commit
from fr_deploy.batch.ledger import Ledger, read_outcomes
from fr_deploy.batch.place import Placer
from fr_deploy.batch.sinks import Sink, TreeSink
from fr_deploy.batch.tar_sink import TarSink


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


def tree(tmp_path: Path, **more: Any) -> TreeSink:
    (tmp_path / "out").mkdir(exist_ok=True)
    return TreeSink(tmp_path / "out", **more)


def place(sink: Sink, parts: Path, index: int, *paths: str, data: bytes | None = None) -> Record:
    (entry,) = sink.add(finished(parts, index, *paths, data=data))
    (outcome,) = sink.place(entry)
    sink.sync()
    return outcome


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


ODD = [
    "plain.png",
    "a b/c d.png",
    "-rf.png",
    "new\nline.png",
    "quote'\".png",
    "$(touch x).png",
    "back\\slash.png",
    "e\u0301.png",
    "\u00e9.png",
    "\U0001f600.png",
    "\u202egnp.png",
    "bad\udcff.png",
    "UPPER.png",
    "upper.png",
    "x" * 251 + ".png",
    "/".join("d" * 20 for _ in range(60)) + "/deep.png",
    "...png",
    "..a/..b.png",
    "con.png",
    "semi;colon|pipe&.png",
    "tab\there.png",
    "%2e%2e%2f.png",
]


def journal_of(tmp_path: Path, entries: list[Entry]) -> Journal:
    journal = Journal(tmp_path / "journal")
    journal.write(entries)
    return journal


def finish(tmp_path: Path, *ours: int) -> tuple[int, list[Record]]:
    """What the next opening does."""
    journal, ledger = Journal(tmp_path / "journal"), Ledger(tmp_path / "ledger")
    count = finish_commit(journal, ledger, Placer(tmp_path / "out"), ours.__contains__)
    assert journal.left() == []
    ledger.close()
    return count, list(read_outcomes(ledger.path))


def tar_sink(tmp_path: Path, **more: Any) -> TarSink:
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "parts").mkdir(exist_ok=True)
    return TarSink(tmp_path / "out", tmp_path / "parts", **more)


def commit(sink: Sink, entries: list[Entry]) -> list[Record]:
    outcomes = [outcome for entry in entries for outcome in sink.place(entry)]
    sink.sync()
    return outcomes


def fill(tmp_path: Path, indexes: range, **more: int) -> list[Record]:
    sink = tar_sink(tmp_path, **more)
    outcomes = [
        outcome
        for index in indexes
        for outcome in commit(sink, sink.add(finished(tmp_path / "parts", index)))
    ]
    return outcomes + commit(sink, sink.flush())


def members(shard: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(shard, "r:", errors="surrogateescape") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file
            facts = (member.mtime, member.uid, member.gid, member.mode, member.uname, member.type)
            assert facts == (0, 0, 0, 0o644, "", tarfile.REGTYPE)
            found[member.name] = file.read()
    return found
