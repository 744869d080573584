"""Lists of photos: CSV and JSONL manifests, and names from standard input. Read line by line, never as a whole."""

import csv
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

from fr_deploy.batch.names import Notes
from fr_deploy.errors import ResourceError, UsageError

MANIFEST_SUFFIXES = frozenset((".csv", ".jsonl", ".ndjson"))
MAX_LINE = 2**20
"""Characters of a line; a file with longer ones is no list of names."""
_PATHS = ("path", "uri")
_PIECE = 2**20


@dataclass(frozen=True)
class Row:
    """One photo of a list."""

    where: str
    """`list.csv line 7`, for messages."""
    path: str
    """A path or a URL, as it is written."""
    name: str | None = None
    """What the item shall be called, if that is said."""
    output: str | None = None
    """Where its result shall go, if that is said."""


def read_manifest(path: str, notes: Notes) -> Iterator[Row]:
    """Read a CSV file with a header, or a JSON object a line.

    The columns or keys are `path` (or `uri`), and if wanted `name` and `output`; others are not looked at. Bytes that
    are no UTF-8 stand for themselves, as in file names.

    Args:
        path: ends in `.csv`, `.jsonl` or `.ndjson`.
        notes: takes the bad rows, named by their line.

    Raises:
        UsageError: there is no such column, a line is longer than 2^20 characters, or the file cannot be read.
    """
    read = _csv_rows if path.lower().endswith(".csv") else _json_rows
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from read(file, path, notes)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


class StandardInput:
    """Names from standard input, kept in an unnamed file: it can be read once, and they are gone through again."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._copy: BinaryIO | None = None
        self._end = b"\n"

    def rows(self) -> Iterator[Row]:
        """The names: one a line, or with NULs between them if there is a NUL anywhere. Empty ones are left out.

        Raises:
            ResourceError: the folder for temporary files is full.
            UsageError: a name is longer than 2^20 bytes.
        """
        copy = self._copy = self._copy or self._read()
        rest = b""
        position = count = 0
        while True:
            copy.seek(position)  # each time: another one may be going through the names as well
            piece = copy.read(_PIECE)
            position += len(piece)
            *names, rest = (rest + piece).split(self._end) if piece else (rest, b"")
            for name in names:
                count += 1
                yield from self._row(name, count)
            if len(rest) > MAX_LINE:
                raise UsageError(f"standard input: name {count + 1} is longer than {MAX_LINE}")
            if not piece:
                return

    def _row(self, name: bytes, number: int) -> Iterator[Row]:
        if self._end == b"\n":
            name = name.removesuffix(b"\r")
        if name:
            yield Row(f"standard input, name {number}", os.fsdecode(name))

    def _read(self) -> BinaryIO:
        # Not a `with`: it lives as long as this object, and has no name that could be left behind.
        copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            while piece := self._source.read(_PIECE):
                if b"\0" in piece:
                    self._end = b"\0"
                copy.write(piece)
        except OSError as error:
            copy.close()
            raise ResourceError(
                f"cannot keep the names of standard input in {tempfile.gettempdir()}: "
                f"{error.strerror or error}; free space there, or name another folder with TMPDIR"
            ) from error
        return copy


def _lines(file: TextIO, path: str) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) >= MAX_LINE:
            raise UsageError(f"{path} line {number} has more than {MAX_LINE} characters")
        yield line


def _csv_rows(file: TextIO, path: str, notes: Notes) -> Iterator[Row]:
    reader = csv.reader(_lines(file, path), strict=True)
    header: list[str] | None = None
    while True:
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if header is None:
                raise UsageError(f"{path}: its first line is no CSV: {error}") from None
            notes.refuse(f"{path} line {reader.line_num}", "bad_row", f"is no CSV: {error}")
            continue
        if header is None:
            header = [value.strip().lower() for value in values]
            _check_header(header, path)
        elif any(values):
            where = f"{path} line {reader.line_num}"
            if len(values) > len(header):
                text = (
                    f"has {len(values)} columns, the header {len(header)}: quote names with commas"
                )
                notes.refuse(where, "bad_row", text)
                continue
            yield from _row(where, dict(zip(header, values, strict=False)), notes)
    if header is None:
        raise UsageError(f"{path} is empty; its first line must name a column path or uri")


def _check_header(header: list[str], path: str) -> None:
    if not set(_PATHS) & set(header):
        raise UsageError(
            f"{path}: the header must have a column path or uri; found {', '.join(header)[:200]!r}"
        )


def _json_rows(file: TextIO, path: str, notes: Notes) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            notes.refuse(where, "bad_row", f"is no JSON: {error}")
            continue
        if isinstance(value, dict):
            yield from _row(where, value, notes)
        else:
            notes.refuse(where, "bad_row", "is no JSON object")


def _row(where: str, values: dict[str, Any], notes: Notes) -> Iterator[Row]:
    kept = {key: values.get(key) for key in (*_PATHS, "name", "output")}
    for key, value in kept.items():
        if value is not None and not isinstance(value, str):
            notes.refuse(where, "bad_row", f"{key} is {str(value)[:80]!r}; allowed are strings")
            return
    path = kept["path"] or kept["uri"]
    if not path:
        notes.refuse(where, "bad_row", "has neither path nor uri")
    elif kept["path"] and kept["uri"]:
        notes.refuse(where, "bad_row", "has both path and uri; leave one of them out")
    else:
        yield Row(where, path, kept["name"] or None, kept["output"] or None)
