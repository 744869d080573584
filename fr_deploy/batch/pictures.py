"""Small before/after pictures of a run's first items: `pictures.jsonl`, read again by the report."""

import base64
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fr_deploy.batch.durable import AppendFile
from fr_deploy.batch.lines import decode_line, encode_line, read_lines
from fr_deploy.report_page import Pair

FILE = "pictures.jsonl"
MAX_PICTURED = 500
"""Items after these have none: each costs about 50 kB of the report."""

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class Pictures:
    """Keeps the pictures of at most `MAX_PICTURED` items, over all starts of a run."""

    def __init__(self, path: Path) -> None:
        """Open, or create; a line torn when a run was killed is dropped.

        Args:
            path: `pictures.jsonl` of the run's state.

        Raises:
            ResourceError: it cannot be written.
        """
        lines = list(_whole(path))
        self._ids = {str(value["id"]) for _, _, value in lines}
        keep = max((end for _, end, _ in lines), default=0)
        self._file = AppendFile(path, keep=keep)

    def add(self, item_id: str, pictures: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the pictures of one item, if there is room and it has none yet.

        Args:
            item_id: of the item.
            pictures: JPEG before and after: the photo, then faces.

        Raises:
            ResourceError: the disk is full.
        """
        if not pictures or item_id in self._ids or len(self._ids) >= MAX_PICTURED:
            return
        pairs = [[base64.b64encode(data).decode() for data in pair] for pair in pictures]
        # Unsynced: pictures lost with the power are left out of a report, and cost nothing else.
        self._file.append(encode_line({"id": item_id, "pairs": pairs}), sync=False)
        self._ids.add(item_id)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def merge_pictures(sources: Sequence[Path], target: Path) -> None:
    """Put the pictures of several runs together, as many as one may have.

    Args:
        sources: files as `Pictures` writes them; may be missing.
        target: the file.

    Raises:
        ResourceError: it cannot be written.
    """
    both = Pictures(target)
    for source in sources:
        for _, _, value in _whole(source):
            pairs = [(base64.b64decode(a), base64.b64decode(b)) for a, b in value["pairs"]]
            both.add(str(value["id"]), pairs)
    both.close()


class PictureBook:
    """Finds the pictures of an item; holds their places in memory, not the pictures."""

    def __init__(self, path: Path) -> None:
        """Look through a file; one that is missing holds none.

        Args:
            path: `pictures.jsonl` of the run's state.
        """
        self._path = path
        places = [(str(value["id"]), offset) for offset, _, value in _whole(path)]
        self._offsets = dict(places[:MAX_PICTURED])

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def pairs(self, item_id: str) -> tuple[Pair, ...]:
        """The photo, then faces; empty if the item has none."""
        if item_id not in self._offsets:
            return ()
        with self._path.open("rb") as file:
            file.seek(self._offsets[item_id])
            value = decode_line(file.readline())
        found = value["pairs"] if value else []
        return tuple(_pair(base64.b64decode(a), base64.b64decode(b)) for a, b in found)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height as a JPEG file's own header has them; (0, 0) if it has none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = struct.unpack_from(">BH", data, at + 1)
        if kind in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length
    return 0, 0


def _pair(before: bytes, after: bytes) -> Pair:
    return Pair(before, after, *jpeg_size(after))


def _whole(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    for place in read_lines(path):
        if place.value is not None:
            yield place.offset, place.end, place.value
