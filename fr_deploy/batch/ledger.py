"""The ledger: what became of each item, appended and never changed. It is the truth about a run.

A line is the JSON of a `Record`, or `{"redo": index, "id": ..., "why": ...}`: the outcome before it no longer
holds, and the item is made again. So each item has one outcome that stands: the first one behind its last redo.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fr_deploy.batch.bits import Bits
from fr_deploy.batch.durable import AppendFile
from fr_deploy.batch.item import Record
from fr_deploy.batch.lines import Line, decode_line, encode_line, read_lines

_REDO = b'{"redo":'
SHARD_MARK = ".tar!/"
"""Between a tar shard and its member, in an output's path."""


@dataclass
class Tally:
    """What a ledger says, in one bit or less for each item."""

    done: Bits = field(default_factory=Bits)
    """Items that have an outcome."""
    failed: Bits = field(default_factory=Bits)
    """Those whose outcome is `failed`."""
    redone: Bits = field(default_factory=Bits)
    """Items that had an outcome which was taken back: what lies at their output paths is ours."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """By status and reason."""
    corrupt: int = 0
    """Lines with whole ones behind them that are not as they were written; their items run again."""
    duplicates: int = 0
    """Outcomes of items that had one; the first one stands."""
    last_shard: int = -1
    """The highest number of a tar shard named in it."""
    end: int = 0
    """Bytes up to the end of the last whole line."""

    def add(self, value: dict[str, Any]) -> bool:
        """Count one line in; False if it is an outcome of an item that has one."""
        if "redo" in value:
            self._take_back(value)
            return True
        index, status = int(value["index"]), str(value["status"])
        if not self.done.add(index):
            self.duplicates += 1
            return False
        if status == "failed":
            self.failed.add(index)
        self.counts[status, str(value["reason"])] += 1
        for output in value["outputs"]:
            self._note_shard(output["path"])
        return True

    def _take_back(self, value: dict[str, Any]) -> None:
        index = int(value["redo"])
        if self.done.discard(index):
            self.failed.discard(index)
            self.redone.add(index)
            self.counts[value["status"], value["reason"]] -= 1

    def _note_shard(self, path: str) -> None:
        shard, mark, _ = path.partition(SHARD_MARK)
        number = shard.rpartition("-")[2]
        if mark and number.isdecimal():
            self.last_shard = max(self.last_shard, int(number))


def read_tally(path: Path) -> Tally:
    """Read a ledger through; one that is missing is empty. Nothing is changed.

    Raises:
        OSError: it cannot be read.
    """
    tally, doubtful = Tally(), 0
    for line in read_lines(path):
        if line.value is None:
            doubtful += 1
            continue
        tally.add(line.value)
        tally.corrupt, tally.end, doubtful = tally.corrupt + doubtful, line.end, 0
    return tally


def read_standing(path: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
    """The outcome that stands of each item that has one, as JSON, in the order of the file, in constant memory.

    Raises:
        OSError: as `read_tally`.
    """
    redos = _count_redos(path)
    seen = Bits()
    for line in read_lines(path):
        value = line.value
        if value is None:
            continue
        if "redo" in value:
            redos[value["redo"]] -= 1
        elif redos[value["index"]] <= 0 and seen.add(value["index"]):
            yield line, value


def read_outcomes(path: Path) -> Iterator[Record]:
    """The same as records.

    Raises:
        OSError: as `read_tally`.
    """
    return (Record.from_json(value) for _, value in read_standing(path))


def _count_redos(path: Path) -> Counter[int]:
    redos: Counter[int] = Counter()
    with suppress(FileNotFoundError), path.open("rb") as file:
        for raw in file:
            if raw.startswith(_REDO, 9):  # behind the CRC; a million records are not parsed for it
                value = decode_line(raw)
                if value is not None:
                    redos[value["redo"]] += 1
    return redos


class Ledger:
    """A ledger open for writing, by one process at a time; `State` sees to that."""

    def __init__(self, path: Path) -> None:
        """Open, or create. Torn or damaged lines at its end, left by a crash, are cut off.

        Raises:
            ResourceError: it cannot be written.
        """
        self.path = path
        self.tally = read_tally(path)
        """What it says; kept up to date by `append`."""
        self._file = AppendFile(path, keep=self.tally.end)

    @property
    def outcomes(self) -> int:
        """How many items have an outcome."""
        return len(self.tally.done)

    def is_done(self, index: int) -> bool:
        """Whether an item has an outcome."""
        return index in self.tally.done

    def append(self, records: Sequence[Record]) -> None:
        """Add outcomes: one write and one fsync for all of them, and none of them if that fails.

        Raises:
            ResourceError: the disk is full, or cannot be written.
            ValueError: an item has an outcome already; nothing was written.
        """
        indexes = [record.index for record in records]
        if len(set(indexes)) < len(indexes) or any(map(self.is_done, indexes)):
            raise ValueError(f"{self.path}: a second outcome for one of the items {indexes}")
        values = [record.to_json() for record in records]
        self._append(values)

    def redo(self, records: Sequence[Record], why: str) -> None:
        """Take outcomes back, so that their items are made again.

        Args:
            records: outcomes that stand.
            why: for whoever reads the ledger, such as `missing`.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        lines = [
            {"redo": r.index, "id": r.id, "why": why, "status": r.status, "reason": r.reason}
            for r in records
        ]
        self._append(lines)

    def close(self) -> None:
        """Close it; twice is once."""
        self._file.close()

    def _append(self, values: Sequence[dict[str, Any]]) -> None:
        if values:
            self._file.append(b"".join(map(encode_line, values)), sync=True)
        for value in values:
            self.tally.add(value)
