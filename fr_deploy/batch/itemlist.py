"""The list of a run: `items.jsonl`, one item a line, written once and then read in a stream, never held."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fr_deploy.batch.durable import hash_file, replace_durably
from fr_deploy.batch.item import Item
from fr_deploy.errors import ModelError

_HEAD = b'{"index":'


@dataclass(frozen=True)
class Listed:
    """What was written."""

    items: int
    """Lines of the file."""
    sha256: str
    """Of the file."""
    whole_items: int
    """Items listed; more than `items` if the file holds one shard of them."""
    names_sha256: str
    """Of all names and outputs listed: equal in all shards of one list."""


def shard_of(item_id: str, shards: int) -> int:
    """The shard of an item, 0 to `shards` - 1: its id modulo their number, the same on every machine."""
    return int(item_id[:16], 16) % shards


def item_line(item: Item) -> bytes:
    """An item as a line; its index stands first, fields that are None are left out."""
    known = {name: value for name, value in vars(item).items() if value is not None}
    return json.dumps(known, separators=(",", ":")).encode("ascii") + b"\n"


def write_items(
    path: Path, items: Iterable[Item], *, shard: tuple[int, int] | None = None
) -> Listed:
    """Write a list, whole or not at all, in constant memory.

    Args:
        path: the file.
        items: all of the list, by rising index.
        shard: (i, n): only the items of shard i of n are written, with their places in the whole list.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    written, names = hashlib.sha256(), hashlib.sha256()
    counts = [0, 0]

    def lines() -> Iterator[bytes]:
        for item in items:
            counts[1] += 1
            names.update(f"{item.name}\0{item.output}\n".encode("utf-8", "surrogateescape"))
            if shard is None or shard_of(item.id, shard[1]) == shard[0]:
                counts[0] += 1
                line = item_line(item)
                written.update(line)
                yield line

    replace_durably(path, lines())
    return Listed(counts[0], written.hexdigest(), counts[1], names.hexdigest())


def check_items(path: Path, sha256: str) -> None:
    """See whether a list is the one that was written.

    Raises:
        ModelError: it is missing, or was changed.
    """
    try:
        found = hash_file(path)[1]
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != sha256:
        raise ModelError(
            f"{path} was changed since the run began: SHA-256 {found}, expected {sha256}; "
            "put the file back, or begin again in another folder"
        )


def read_items(
    path: Path,
    *,
    from_index: int = 0,
    skip: Callable[[int], bool] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Item]:
    """The items of a list, in its order.

    Args:
        path: the file.
        from_index: items with a smaller index are passed over.
        skip: says of an index that its item is passed over; such lines are not parsed.
        start: where to begin, the offset of a line.
        stop: bytes of the file that are read; None: all.

    Raises:
        ModelError: the list is missing, or a line is damaged.
    """
    with _open(path) as file:
        file.seek(start)
        offset = start
        for line in file:
            offset += len(line)
            if stop is not None and offset > stop:
                return
            index = _index_of(line, path)
            if index >= from_index and not (skip and skip(index)):
                yield _item_of(line, path)


def count_items(path: Path) -> tuple[int, int]:
    """Number of items and bytes of the whole lines of a list that grows; a torn last line is left out.

    Raises:
        ModelError: the list is missing.
    """
    count, size = 0, 0
    with _open(path) as file:
        for line in file:
            if line.endswith(b"\n"):
                count, size = count + 1, size + len(line)
    return count, size


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ModelError:
    what = error.strerror or error
    return ModelError(f"cannot read {path}: {what}; put it back, or begin again in another folder")


def _index_of(line: bytes, path: Path) -> int:
    try:
        if not line.startswith(_HEAD):
            raise ValueError("no index")
        return int(line[len(_HEAD) : line.index(b",")])
    except ValueError as error:
        raise _damaged(path, line) from error


def _item_of(line: bytes, path: Path) -> Item:
    try:
        value: dict[str, Any] = json.loads(line)
        return Item(**value)
    except (ValueError, TypeError) as error:
        raise _damaged(path, line) from error


def _damaged(path: Path, line: bytes) -> ModelError:
    return ModelError(
        f"{path} has a damaged line, {line[:80]!r}; put the file back, or begin again elsewhere"
    )
