"""Whether the outputs are what the ledger says, and making those again that are not."""

import os
import re
import tarfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from fr_deploy.batch.bits import Bits
from fr_deploy.batch.books import Books, open_books
from fr_deploy.batch.durable import hash_file, replace_durably
from fr_deploy.batch.folder import FOLDER, part_folders
from fr_deploy.batch.item import Output, Record
from fr_deploy.batch.ledger import SHARD_MARK, Tally, read_outcomes, read_tally
from fr_deploy.batch.lines import encode_line, read_lines
from fr_deploy.batch.lock import holder_of
from fr_deploy.batch.state import State

Kind = Literal[
    "missing", "corrupt", "torn", "without_outcome", "damaged_line", "second_outcome", "stranger"
]
EXAMPLES = 20
"""Problems of each kind that are named; all are counted."""
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_MEMBER_CHUNK = 2**20
_REDO_GROUP = 1000
Members = Callable[[Path], dict[str, tuple[int, int]]]
"""Offset and size of each member of a shard."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    kind: Kind
    """`missing` and `corrupt` outputs; `torn` files of a run that was killed; items `without_outcome`; a
    `damaged_line` of the ledger; a `second_outcome` of one item; a `stranger`: an outcome of no item of the list."""
    name: str
    """Of the item, or the file."""
    detail: str = ""


@dataclass
class Report:
    """What `verify` found."""

    items: int = 0
    outcomes: int = 0
    files: int = 0
    """Outputs looked at."""
    size: int = 0
    """Their bytes."""
    counts: Counter[Kind] = field(default_factory=Counter[Kind])
    """Problems by kind."""
    examples: list[Problem] = field(default_factory=list[Problem])
    """The first 20 of each kind."""
    broken: Bits = field(default_factory=Bits)
    """Indexes of items with missing or corrupt outputs."""

    @property
    def ok(self) -> bool:
        """Every item has one outcome, and every output is what it should be."""
        return not self.counts

    def add(self, kind: Kind, name: str, detail: str = "", count: int = 1) -> None:
        """Note problems, one of them by name."""
        if self.counts[kind] < EXAMPLES:
            self.examples.append(Problem(kind, name, detail))
        self.counts[kind] += count


def verify(
    state: State, *, threads: int = 2, on_file: Callable[[Report], None] | None = None
) -> Report:
    """Read all outputs, and compare their SHA-256 with the ledger. Nothing is changed; memory does not grow.

    Args:
        state: of the run; open to be read is enough. While a run is at work, its parts are not torn.
        threads: that read.
        on_file: called after each output, with the report as it stands.

    Raises:
        ModelError: the list is missing or damaged.
    """
    report, tally = Report(), read_tally(state.ledger_path)
    idle = state.locked or holder_of(state.lock_path) is None
    _check_ledger(report, state, tally, idle)
    ids = _check_list(report, state, tally)
    for record in read_outcomes(state.ledger_path):
        known = record.index < len(ids) and ids[record.index] == int(record.id[:16], 16)
        if not known:
            report.add("stranger", record.name, f"index {record.index}")
    for record, output, found in _hashed(state, threads):
        report.files += 1
        if found == (output.size, output.sha256):
            report.size += output.size
        else:
            kind = "corrupt" if found else "missing"
            report.add(kind, record.name, output.path)
            report.broken.add(record.index)
        if on_file:
            on_file(report)
    for path in _torn(state) if idle else ():
        report.add("torn", str(path))
    return report


def repair(state: State, report: Report) -> int:
    """Take back the outcomes of broken outputs, so that the next `resume` makes them again.

    Damaged lines of the ledger are moved to `ledger.damaged`, and parts of killed runs are removed.

    Args:
        state: open with `write`.
        report: of `verify`.

    Returns:
        How many items will be made again, those without outcome not counted.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    _drop_damaged(state)
    books = open_books(state)
    taken = 0
    try:
        group: list[Record] = []
        # While it is read, redos are added behind what is being read; they are no outcomes.
        for record in read_outcomes(state.ledger_path):
            if record.index in report.broken:
                group.append(record)
            if len(group) == _REDO_GROUP:
                taken += _take_back(books, group)
        taken += _take_back(books, group)
    finally:
        books.close()
    return taken


def _take_back(books: Books, group: list[Record]) -> int:
    count = len(group)
    books.ledger.redo(group, "output missing or corrupt")
    group.clear()
    return count


def _check_ledger(report: Report, state: State, tally: Tally, idle: bool) -> None:
    report.outcomes = len(tally.done)
    path = state.ledger_path
    if tally.corrupt:
        report.add("damaged_line", str(path), count=tally.corrupt)
    if idle and path.exists() and path.stat().st_size > tally.end:
        report.add("damaged_line", str(path), "at its end; the next run cuts it off")
    if tally.duplicates:
        report.add("second_outcome", str(path), count=tally.duplicates)


def _check_list(report: Report, state: State, tally: Tally) -> "array[int]":
    """Look for items without outcome; returns the first 8 bytes of each item's id, by index."""
    state.check_list()
    ids: array[int] = array("Q")
    for item in state.read_list():
        report.items += 1
        ids.extend([0] * (item.index - len(ids)))  # of other shards
        ids.append(int(item.id[:16], 16))
        if item.index not in tally.done:
            report.add("without_outcome", item.name)
    return ids


def _hashed(state: State, threads: int) -> Iterator[tuple[Record, Output, tuple[int, str] | None]]:
    """Each output with the size and SHA-256 that it has; None if it is missing."""
    members = lru_cache(maxsize=4)(_members)  # those of a shard stand together in the ledger
    waiting: deque[tuple[Record, Output, Future[tuple[int, str] | None]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for record in read_outcomes(state.ledger_path):
            for output in record.outputs:
                job = pool.submit(_hash_output, state.destination, output, members)
                waiting.append((record, output, job))
            while len(waiting) > 4 * threads:
                record_, output, job = waiting.popleft()
                yield record_, output, job.result()
        for record, output, job in waiting:
            yield record, output, job.result()


def _hash_output(destination: Path, output: Output, members: Members) -> tuple[int, str] | None:
    shard, mark, member = output.path.partition(SHARD_MARK)
    try:
        if mark:
            return _hash_member(destination / (shard + mark[:4]), member, members)
        path = destination / output.path
        if path.stat().st_size != output.size:
            return path.stat().st_size, ""
        return hash_file(path)
    except FileNotFoundError:
        return None
    except (OSError, tarfile.TarError):
        return 0, ""


def _hash_member(shard: Path, name: str, members: Members) -> tuple[int, str] | None:
    place = members(shard).get(name)
    if place is None:
        return None
    offset, size = place
    digest = sha256()
    with shard.open("rb") as file:
        file.seek(offset)
        for start in range(0, size, _MEMBER_CHUNK):
            digest.update(file.read(min(_MEMBER_CHUNK, size - start)))
    return size, digest.hexdigest()


def _members(shard: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(shard, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}


def _torn(state: State) -> Iterator[Path]:
    for parts in part_folders(state.folder, state.destination):
        if parts.is_dir():
            yield from parts.iterdir()
    for folder, below, names in os.walk(state.destination):
        if FOLDER in below:  # other shards may be at work there
            below.remove(FOLDER)
        yield from (Path(folder, name) for name in names if _PART.fullmatch(name))


def _drop_damaged(state: State) -> None:
    path = state.ledger_path
    if not read_tally(path).corrupt:
        return
    kept = state.folder / "ledger.damaged"
    raw = path.read_bytes()
    damaged = [raw[line.offset : line.end] for line in read_lines(path) if line.value is None]
    replace_durably(kept, damaged)
    replace_durably(
        path, (encode_line(line.value) for line in read_lines(path) if line.value is not None)
    )
