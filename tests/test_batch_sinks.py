"""Sinks and the journal: no file of others is replaced, nothing leaves the destination, no commit is left half done."""

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from batch_records import Disk, begin, content, finished, item, record
from fr_deploy.batch.books import Books, make_sink, open_books
from fr_deploy.batch.item import Record
from fr_deploy.batch.journal import Entry, Journal, Move, finish_commit
from fr_deploy.batch.ledger import Ledger, read_outcomes
from fr_deploy.batch.lines import encode_line
from fr_deploy.batch.place import Placer
from fr_deploy.batch.sinks import Sink, TreeSink
from fr_deploy.batch.tar_sink import TarSink
from fr_deploy.errors import ModelError, ResourceError


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


def test_odd_names_are_placed_as_they_are(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    for index, name in enumerate(ODD):
        outcome = place(sink, parts, index, name, data=name.encode("utf-8", "surrogateescape"))
        assert (outcome.status, outcome.outputs[0].path) == ("restored", name), outcome.message
    found = files(tmp_path / "out")
    assert found == {name: name.encode("utf-8", "surrogateescape") for name in ODD}
    assert not files(parts)


@pytest.mark.parametrize(
    "path",
    [
        *("../x.png", "a/../../x.png", "/x.png", "a//x.png", "", ".", "..", "a/./x.png", "x\0.png"),
        *(".fr-deploy/ledger.jsonl", "./.fr-deploy/run.json"),
    ],
)
def test_nothing_leaves_the_destination(tmp_path: Path, parts: Path, path: str) -> None:
    outcome = place(tree(tmp_path), parts, 0, path)
    assert (outcome.status, outcome.reason, outcome.outputs) == ("failed", "unwritable", [])
    assert "not a place below the destination" in outcome.message
    assert list((tmp_path / "out").iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"out", "parts"}


def test_a_file_of_others_is_not_replaced(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    outcome = place(sink, parts, 1, "b.png", "a.png", "c.png", data=b"new!")
    assert (outcome.status, outcome.reason) == ("failed", "exists")
    assert "a.png" in outcome.message
    assert "--overwrite" in outcome.message
    assert files(tmp_path / "out") == {"a.png": b"mine"}


def test_a_file_of_the_same_bytes_is_taken(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a.png").write_bytes(b"same")
    assert place(sink, parts, 1, "a.png", data=b"same").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"same"}
    assert not files(parts)


def test_a_link_in_the_place_is_not_followed(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"same")
    (tmp_path / "out" / "a.png").symlink_to(victim)
    (tmp_path / "out" / "b.png").symlink_to(tmp_path / "nowhere")
    assert place(sink, parts, 1, "a.png", data=b"same").reason == "exists"
    assert place(sink, parts, 2, "b.png", data=b"x").reason == "exists"
    assert victim.read_bytes() == b"same"
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path, overwrite=True)
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert place(sink, parts, 1, "a.png", data=b"new").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"new"}


def test_an_output_that_was_taken_back_is_replaced(tmp_path: Path, parts: Path) -> None:
    (tmp_path / "out").mkdir()
    sink = TreeSink(tmp_path / "out", is_ours=lambda index: index == 1)
    for index in (1, 2):
        (tmp_path / "out" / f"{index}.png").write_bytes(b"rotten")
    assert place(sink, parts, 1, "1.png", data=b"new").status == "restored"
    assert place(sink, parts, 2, "2.png", data=b"new").reason == "exists"


def test_a_file_where_a_folder_must_be(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a").write_bytes(b"file")
    (tmp_path / "out" / "b.png").mkdir()
    for index, path in enumerate(["a/b.png", "a/b/c/d.png", "b.png"]):
        outcome = place(sink, parts, index, path)
        assert outcome.status == "failed"
        assert outcome.reason == ("exists" if path == "b.png" else "unwritable")
    assert place(sink, parts, 9, "x" * 300 + ".png").reason == "unwritable"
    assert place(sink, parts, 10, "fine.png").status == "restored"


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    assert place(sink, parts, 0, "a/b/c.png").status == "restored"
    shutil.rmtree(tmp_path / "out" / "a")
    assert place(sink, parts, 1, "a/b/d.png").status == "restored"
    assert list(files(tmp_path / "out")) == ["a/b/d.png"]


def test_a_file_system_without_links(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    sink = tree(tmp_path)
    assert place(sink, parts, 0, "a.png", data=b"1").status == "restored"
    assert place(sink, parts, 1, "a.png", data=b"2").reason == "exists"
    assert place(sink, parts, 2, "a.png", data=b"1").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"1"}


@pytest.mark.parametrize(("number", "fails"), [(5, 2), (116, 2), (5, 3), (28, 1), (30, 1)])
def test_errors_of_the_file_system(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: int
) -> None:
    """EIO and ESTALE may pass, twice; ENOSPC and EROFS end the run, and nothing of the item stays."""
    left, real = [fails], os.link

    def link(a: Path, b: Path) -> None:
        if b.name == "b.png" and left[0]:
            left[0] -= 1
            raise OSError(number, "Broken")
        real(a, b)

    monkeypatch.setattr(os, "link", link)
    sink = tree(tmp_path)
    if number in (5, 116) and fails < 3:
        assert place(sink, parts, 0, "a.png", "b.png").status == "restored"
        return
    with pytest.raises(ResourceError, match="resume the run"):
        place(sink, parts, 0, "a.png", "b.png")
    assert not files(tmp_path / "out")


def test_each_folder_is_synced_once(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = tree(tmp_path)
    place(sink, parts, 0, "a/x.png")
    entries = [e for i in range(1, 9) for e in sink.add(finished(parts, i, f"a/{i}.png"))]
    disk = Disk(monkeypatch)
    for entry in entries:
        sink.place(entry)
    sink.sync()
    assert disk.syncs == 1
    place(sink, parts, 20, "b/c/x.png")  # made: out, b and c change
    assert disk.syncs == 4


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


def test_shards_hold_the_outputs_in_order(tmp_path: Path) -> None:
    outcomes = fill(tmp_path, range(25), shard_items=10)
    shards = sorted((tmp_path / "out").iterdir())
    assert [shard.name for shard in shards] == [f"results-{i:06d}.tar" for i in range(3)]
    assert [len(members(shard)) for shard in shards] == [10, 10, 5]
    for index, outcome in enumerate(outcomes):
        (output,) = outcome.outputs
        shard, _, name = output.path.partition("!/")
        assert (outcome.index, name) == (index, item(index).output)
        assert members(tmp_path / "out" / shard)[name] == content(index)
    assert not files(tmp_path / "parts")


def test_shards_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, range(5))
    assert files(tmp_path / "a" / "out") == files(tmp_path / "b" / "out")


def test_shards_are_closed_by_size(tmp_path: Path) -> None:
    sink = tar_sink(tmp_path, shard_bytes=100_000)
    for index in range(6):
        commit(sink, sink.add(finished(tmp_path / "parts", index, data=b"x" * 40_000)))
    assert [len(members(s)) for s in sorted((tmp_path / "out").iterdir())] == [3, 3]
    assert sink.flush() == []


def test_odd_names_in_shards(tmp_path: Path) -> None:
    sink = tar_sink(tmp_path)
    for index, name in enumerate(ODD):
        assert sink.add(finished(tmp_path / "parts", index, name, data=b"%d" % index)) == []
    commit(sink, sink.flush())
    (shard,) = (tmp_path / "out").iterdir()
    assert members(shard) == {name: b"%d" % i for i, name in enumerate(ODD)}


def test_items_without_outputs_do_not_wait(tmp_path: Path) -> None:
    sink = tar_sink(tmp_path)
    assert sink.add(finished(tmp_path / "parts", 0)) == []
    done = finished(tmp_path / "parts", 1)
    os.unlink(done.parts[0])
    (entry,) = sink.add(done)
    assert (entry.records[0].reason, entry.moves) == ("unwritable", [])
    short = finished(tmp_path / "parts", 2, data=b"12345")
    Path(short.parts[0]).write_bytes(b"123")
    (entry,) = sink.add(short)
    assert entry.records[0].reason == "unwritable"
    (outcome,) = commit(sink, sink.flush())
    assert outcome.index == 0


def test_numbers_go_on_behind_all_that_were_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results-000007.tar").write_bytes(b"of others")
    (tmp_path / "out" / "results-x.tar").write_bytes(b"")
    (outcome,) = fill(tmp_path, range(1))
    assert outcome.outputs[0].path.startswith("results-000008.tar!/")
    (outcome,) = fill(tmp_path, range(1, 2), used=30)  # of the ledger; the files were moved away
    assert outcome.outputs[0].path.startswith("results-000031.tar!/")
    sink = tar_sink(tmp_path)
    sink.add(finished(tmp_path / "parts", 5))
    (tmp_path / "out" / "results-000032.tar").write_bytes(b"made meanwhile")
    (outcome,) = commit(sink, sink.flush())
    assert outcome.outputs[0].path.startswith("results-000033.tar!/")
    assert (tmp_path / "out" / "results-000007.tar").read_bytes() == b"of others"


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


def test_an_open_shard_is_dropped_after_a_kill(tmp_path: Path) -> None:
    with begin(tmp_path, 5, sink={"kind": "tar", "items": 3}) as state:
        books = open_books(state)
        sink = make_sink(state, books)
        entries = [e for i in range(5) for e in sink.add(finished(books.part_folder, i))]
        books.journal.write(entries)
        books.ledger.append(commit(sink, entries))
        assert files(books.part_folder)
        again = open_books(state)
        assert again.torn == 1
        assert list(again.ledger.tally.done) == [0, 1, 2]
        assert not files(again.part_folder)
        sink = make_sink(state, again)
        sink.add(finished(again.part_folder, 3))
        (entry,) = sink.flush()
        assert entry.moves[0].path == "results-000001.tar"


def test_a_full_disk_never_leaves_a_torn_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = tar_sink(tmp_path, shard_items=100)
    for index in range(5):
        sink.add(finished(tmp_path / "parts", index))
    disk = Disk(monkeypatch)
    disk.full = True
    with pytest.raises(ResourceError, match="disk is full"):
        sink.flush()
    assert not files(tmp_path / "out")


def opened(tmp_path: Path, sink: dict[str, object]) -> tuple[Books, Sink]:
    with begin(tmp_path, 5, sink=sink, shard=(0, 1)) as state:
        books = open_books(state)
        return books, make_sink(state, books)


def test_the_sink_is_that_of_the_run(tmp_path: Path) -> None:
    assert isinstance(opened(tmp_path / "a", {"kind": "tree"})[1], TreeSink)
    books, sink = opened(tmp_path / "b", {"kind": "tar"})
    sink.add(finished(books.part_folder, 0))
    assert sink.flush()[0].moves[0].path == "results-0-of-1-000000.tar"
    with pytest.raises(ModelError, match="tree and tar"):
        opened(tmp_path / "c", {"kind": "zip"})
