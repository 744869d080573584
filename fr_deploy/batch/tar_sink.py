"""Outputs as members of tar shards: `results-000123.tar`, each complete, or not there at all."""

import os
import re
import tarfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from fr_deploy.batch.durable import disk_error, disk_errors
from fr_deploy.batch.item import Record
from fr_deploy.batch.journal import Entry, Move
from fr_deploy.batch.ledger import SHARD_MARK
from fr_deploy.batch.place import Placer
from fr_deploy.batch.sinks import not_placed
from fr_deploy.batch.work import Finished

SHARD_BYTES = 2**30
SHARD_ITEMS = 1000
"""As many are made again if a run is killed before its first shard is complete."""


class TarSink:
    """Outputs go to one tar file after the other; a shard is committed whole, with its items' outcomes."""

    holds = True

    def __init__(
        self,
        destination: Path,
        part_folder: Path,
        *,
        shard_bytes: int = SHARD_BYTES,
        shard_items: int = SHARD_ITEMS,
        used: int = -1,
        prefix: str = "results",
    ) -> None:
        """Nothing is written yet.

        Args:
            destination: the folder of the shards.
            part_folder: where the open shard is written.
            shard_bytes: a shard is closed once it has as many.
            shard_items: the same of items.
            used: the highest number in the ledger; numbers go on behind it and behind the files that are there.
            prefix: of the shards' names; runs that share a destination need one each.
        """
        self._destination, self._part_folder = destination, part_folder
        self._limits = shard_bytes, shard_items
        self._prefix = prefix
        self._next = 1 + max(used, *self._present(), -1)
        self._part = part_folder
        self._placer = Placer(destination)
        self._records: list[Record] = []
        self._tar: tarfile.TarFile | None = None
        self._file: BinaryIO | None = None

    def add(self, done: Finished) -> list[Entry]:
        """Append an item's parts to the open shard, and remove them.

        Returns:
            The item if it has no output, or one that cannot be read; and the shard if it is full now.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        record = done.record
        if not record.outputs:
            return [Entry([], [record])]
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            for part, output in zip(done.parts, record.outputs, strict=True):
                try:
                    files.append(stack.enter_context(Path(part).open("rb")))
                    if os.fstat(files[-1].fileno()).st_size != output.size:
                        raise ValueError(f"its part has not {output.size} bytes")
                except (OSError, ValueError) as error:
                    return [Entry([], [not_placed(record, output.path, error)])]
            with disk_errors(self._part_folder):
                self._append(record, files)
                for part in done.parts:
                    os.unlink(part)
        assert self._file is not None
        full = self._file.tell() >= self._limits[0] or len(self._records) >= self._limits[1]
        return self.flush() if full else []

    def flush(self) -> list[Entry]:
        """Close the open shard, if there is one; its bytes are on the disk then.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        if self._tar is None or self._file is None:
            return []
        with disk_errors(self._part):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
        while os.path.lexists(self._destination / self._name):
            self._next += 1
        name = self._name
        records = [_inside(record, name) for record in self._records]
        self._tar = self._file = None
        self._records, self._next = [], self._next + 1
        return [Entry([Move(str(self._part), name, size)], records)]

    def place(self, entry: Entry) -> list[Record]:
        """Rename a shard.

        Raises:
            ResourceError: the disk is full, or cannot be written, or another program took the shard's name.
        """
        for move in entry.moves:
            try:
                self._placer.place(Path(move.part), move.path, replace=False)
            except OSError as error:
                raise disk_error(self._destination / move.path, error) from error
        return entry.records

    def sync(self) -> None:
        """One fsync of the destination, if a shard was placed.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        self._placer.sync()

    @property
    def _name(self) -> str:
        return f"{self._prefix}-{self._next:06d}.tar"

    def _present(self) -> list[int]:
        pattern = re.compile(re.escape(self._prefix) + r"-(\d{6,})\.tar")
        try:
            matches = map(pattern.fullmatch, os.listdir(self._destination))
        except FileNotFoundError:
            return []
        return [int(match[1]) for match in matches if match]

    def _append(self, record: Record, files: list[BinaryIO]) -> None:
        if self._tar is None:
            # A name of its own: the shard before may be closed and not yet placed.
            self._part = self._part_folder / f"{self._name}.part"
            self._file = self._part.open("wb")
            self._tar = tarfile.TarFile(
                fileobj=self._file,
                mode="w",
                format=tarfile.GNU_FORMAT,
                encoding="utf-8",
                errors="surrogateescape",
            )
        for output, file in zip(record.outputs, files, strict=True):
            member = tarfile.TarInfo(output.path)  # mode 0644, and 0 for time, user and group
            member.size = output.size
            self._tar.addfile(member, file)
        self._records.append(record)


def _inside(record: Record, shard: str) -> Record:
    outputs = [replace(o, path=f"{shard}{SHARD_MARK[4:]}{o.path}") for o in record.outputs]
    return replace(record, outputs=outputs)
