"""Outputs in tar shards: whole, in order, the same bytes each time, and never over a file of others."""

import os
from pathlib import Path

import pytest

from batch_records import Disk, content, finished, item
from batch_sinks import ODD, commit, files, fill, members, tar_sink
from fr_deploy.errors import ResourceError


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
