"""The commit under way: written before the first rename, so that a run that is killed then is finished by the next.

Outputs lie in parts, on the disk. A group of them is committed in this order, each step durable before the next:

1. the journal: which part goes where, and the records;
2. the parts are renamed to their places;
3. the folders of these places;
4. the ledger.

A crash before 1 leaves parts, which are cleared: the items run again. Afterwards `Journal.left` finds the group, and
`finish_commit` does what is missing of 2 to 4, so nothing runs again whose output stands in its place. A file that
is found at an output's place is therefore never one of ours, and is not replaced unless its bytes are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fr_deploy.batch.durable import AppendFile, disk_errors, hash_file
from fr_deploy.batch.item import Record
from fr_deploy.batch.ledger import Ledger
from fr_deploy.batch.lines import decode_line, encode_line
from fr_deploy.batch.place import Placer


@dataclass(frozen=True)
class Move:
    """A part and its place."""

    part: str
    """Absolute path."""
    path: str
    """Below the destination, parts between `/`."""
    size: int
    """Bytes."""
    sha256: str = ""
    """Of a shard of a gigabyte: left out."""


@dataclass
class Entry:
    """What is committed together: an item and its outputs, or a tar shard and its items."""

    moves: list[Move]
    records: list[Record]
    replace: bool = False
    """Whatever stands in a place is replaced."""


class Journal:
    """The file `journal`: the last group that was about to be committed."""

    def __init__(self, path: Path) -> None:
        """Open, or create.

        Raises:
            ResourceError: it cannot be written.
        """
        self._path = path
        self._file = AppendFile(path)

    def write(self, entries: Sequence[Entry]) -> None:
        """Take the place of the last group, whose outcomes are in the ledger; one fsync.

        Raises:
            ResourceError: the disk is full, or cannot be written; nothing was placed yet.
        """
        value = {"entries": [_to_json(entry) for entry in entries]}
        self._file.rewrite(encode_line(value))

    def left(self) -> list[Entry]:
        """The group written last; empty if it was not written to its end, as then nothing of it was placed."""
        with disk_errors(self._path):
            value = decode_line(self._path.read_bytes())
        return [_of_json(entry) for entry in value["entries"]] if value else []

    def clear(self) -> None:
        """Forget the group: its outcomes are in the ledger.

        Raises:
            ResourceError: it cannot be written.
        """
        self._file.cut(0)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._file.closed

    def close(self) -> None:
        """Close it; twice is once."""
        self._file.close()


def finish_commit(
    journal: Journal, ledger: Ledger, placer: Placer, is_ours: Callable[[int], bool]
) -> int:
    """Finish the commit that an earlier run was killed in, if there is one.

    Args:
        journal: its group; cleared.
        ledger: gets the outcomes that are missing.
        placer: of the destination.
        is_ours: whether what lies at an item's output paths may be replaced.

    Returns:
        How many outcomes were saved. Items whose parts are gone run again.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    saved: list[Record] = []
    for entry in journal.left():
        records = [record for record in entry.records if not ledger.is_done(record.index)]
        if records and _finish(entry, placer, entry.replace or is_ours(records[0].index)):
            saved += records
    placer.sync()
    ledger.append(saved)
    journal.clear()
    return len(saved)


def _finish(entry: Entry, placer: Placer, replace: bool) -> bool:
    """Place what is not yet placed; False if a part is gone, or its place was taken by another file."""
    for move in entry.moves:
        part, place = Path(move.part), placer.path_of(move.path)
        try:
            if part.exists():
                placer.place(part, move.path, replace=replace)
            elif not _stands(place, move):
                return False
        except OSError as error:
            placer.raise_fatal(error, move.path)
            return False
    return True


def _stands(place: Path, move: Move) -> bool:
    if not move.sha256:
        return place.stat().st_size == move.size
    return hash_file(place) == (move.size, move.sha256)


def _to_json(entry: Entry) -> dict[str, Any]:
    records = [record.to_json() for record in entry.records]
    moves = [asdict(move) for move in entry.moves]
    return {"moves": moves, "records": records, "replace": entry.replace}


def _of_json(value: dict[str, Any]) -> Entry:
    moves = [Move(**move) for move in value["moves"]]
    records = [Record.from_json(record) for record in value["records"]]
    return Entry(moves, records, bool(value["replace"]))
