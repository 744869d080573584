"""The books of a run as it opens them: its own sink, and no part of a shard that was never closed."""

from pathlib import Path

import pytest

from batch_records import begin, finished
from batch_sinks import commit, files
from fr_deploy.batch.books import Books, make_sink, open_books
from fr_deploy.batch.sinks import Sink, TreeSink
from fr_deploy.errors import ModelError


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
