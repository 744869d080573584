"""Lines that know whether they are whole: CRC-32 in 8 hexadecimal digits, a space, JSON, a line's end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

MAX_LINE = 64 * 2**20
"""Longer ones are damage: a record of 1,000 faces has 0.4 MB."""


class Line(NamedTuple):
    """One line of a file."""

    offset: int
    """Where it begins, bytes."""
    end: int
    """Where the next one begins."""
    value: dict[str, Any] | None
    """None: torn, or not as it was written."""


def encode_line(value: dict[str, Any]) -> bytes:
    """One value as a line. Names that are no UTF-8 are kept, as escaped surrogates.

    Raises:
        TypeError, ValueError: it is no JSON.
    """
    body = json.dumps(value, separators=(",", ":")).encode("ascii")
    return b"%08x %b\n" % (crc32(body), body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Undo `encode_line`; None for whatever it cannot have written."""
    if len(line) < 12 or line[8:9] != b" " or line[-1:] != b"\n":
        return None
    body = line[9:-1]
    if b"%08x" % crc32(body) != line[:8]:
        return None
    value = json.loads(body)
    return value if isinstance(value, dict) else None


def read_lines(path: Path, *, start: int = 0) -> Iterator[Line]:
    """All lines of a file, the last one also if it is torn. No file has no lines.

    Args:
        path: the file.
        start: where to begin, the offset of a line in bytes.

    Raises:
        OSError: it cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        offset = start
        while line := file.readline(MAX_LINE):
            end = offset + len(line)
            yield Line(offset, end, decode_line(line))
            offset = end
