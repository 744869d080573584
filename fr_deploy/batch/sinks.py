"""Where outputs are kept: each as a file of the destination's tree, or as a member of a tar shard."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fr_deploy.batch.item import Record
from fr_deploy.batch.journal import Entry, Move
from fr_deploy.batch.place import Placer
from fr_deploy.batch.work import Finished


class Sink(Protocol):
    """What the committer needs of a sink. All calls come from its thread."""

    holds: bool
    """Outcomes may wait in it after `add`, to be returned by a later one."""

    def add(self, done: Finished) -> list[Entry]:
        """Take a finished item; returns what is ready to be committed now.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        ...

    def flush(self) -> list[Entry]:
        """What is still held, ready to be committed.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        ...

    def place(self, entry: Entry) -> list[Record]:
        """Move an entry's parts to their places; returns its outcomes, `failed` where that was impossible.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        ...

    def sync(self) -> None:
        """Make all that was placed durable.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        ...


class TreeSink:
    """Each output is a file of its own, below the destination."""

    holds = False

    def __init__(
        self,
        destination: Path,
        *,
        overwrite: bool = False,
        is_ours: Callable[[int], bool] | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            destination: the folder.
            overwrite: replace what stands at an output's place.
            is_ours: says of an item's index that what stands there is its own former output.
        """
        self._placer = Placer(destination)
        self._overwrite, self._is_ours = overwrite, is_ours

    def add(self, done: Finished) -> list[Entry]:
        """One entry, at once."""
        record = done.record
        moves = [
            Move(part, output.path, output.size, output.sha256)
            for part, output in zip(done.parts, record.outputs, strict=True)
        ]
        ours = self._is_ours is not None and self._is_ours(record.index)
        return [Entry(moves, [record], self._overwrite or ours)]

    def flush(self) -> list[Entry]:
        """Nothing is held."""
        return []

    def place(self, entry: Entry) -> list[Record]:
        """Move an item's parts to their places.

        Returns:
            Its record; `failed` with reason `exists` or `unwritable` if one of the places cannot be taken, and then
            none of them is.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        placed: list[str] = []
        for move in entry.moves:
            try:
                self._placer.place(Path(move.part), move.path, replace=entry.replace)
            except (OSError, ValueError) as error:
                for path in placed:
                    self._placer.remove(path)
                if isinstance(error, OSError):
                    self._placer.raise_fatal(error, move.path)
                return [not_placed(entry.records[0], move.path, error)]
            placed.append(move.path)
        return entry.records

    def sync(self) -> None:
        """One fsync for each folder in which something was placed.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        self._placer.sync()


def not_placed(record: Record, path: str, error: Exception) -> Record:
    """The outcome of an item whose output cannot be put in its place."""
    if isinstance(error, FileExistsError):
        reason, why = "exists", "another file is there; move it away, or add --overwrite"
    else:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason, why = "unwritable", strerror or str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.EISDIR):
            why += ": a file stands where a folder is needed, or a folder in the file's place"
    message = f"cannot write {path}: {why}"
    return replace(record, status="failed", reason=reason, message=message, outputs=[], faces=[])
