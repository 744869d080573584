"""What is restored and what became of it: the two records that every part of a run exchanges."""

import hashlib
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["restored", "no_face", "copied", "failed"]
"""`no_face`: nothing was written; `copied`: no face, and the photo was written as it was."""


@dataclass(frozen=True)
class Item:
    """One photo of a run's list."""

    index: int
    """Its place in the list, from 0."""
    name: str
    """Its source-relative name, parts between `/`; unique in a list. Bytes that are no UTF-8 are surrogates."""
    place: str
    """The file or URL that holds it."""
    output: str
    """Where its result goes below the destination, parts between `/`; unique in a list."""
    member: str | None = None
    """Its name inside `place`, as it is written there, if that is a tar or zip file."""
    offset: int | None = None
    """Where its header begins inside a tar or zip file."""
    size: int | None = None
    """Its bytes as listed, where that is known."""
    mtime_ns: int | None = None
    """Its time of change as listed, for files and members of tar files; another one later means that it was changed."""

    @property
    def id(self) -> str:
        """What the ledger knows it by: 32 hexadecimal digits of its name's BLAKE2b."""
        return item_id(self.name)


def item_id(name: str) -> str:
    """BLAKE2b of 16 bytes over a source-relative name, in hexadecimal."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Output:
    """One file written for an item."""

    path: str
    """Below the destination, parts between `/`; in a tar sink `<shard>!/<member>`."""
    size: int
    """Bytes."""
    sha256: str
    """Of its bytes, hexadecimal."""


@dataclass
class Record:
    """The outcome of one item: one line of the ledger."""

    index: int
    id: str
    name: str
    status: Status
    reason: str = ""
    """A short stable code, for `failed` alone."""
    message: str = ""
    attempts: int = 1
    """How often it was begun in this run, the last time included."""
    in_sha256: str = ""
    """Of the input's bytes, where they could be read."""
    outputs: list[Output] = field(default_factory=list[Output])
    width: int = 0
    """Of the upright input, pixels; 0 where it could not be read."""
    height: int = 0
    """Likewise."""
    faces: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Of each restored face: `box`, `landmarks`, `score`; with the identity guard `angle` (degrees) and `blend`."""
    warnings: list[str] = field(default_factory=list[str])
    ms: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds of each stage: fetch, decode, detect, restore, paste, encode, write."""
    at: float = 0.0
    """When it was committed, seconds since 1970."""
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Record":
        """Undo `to_json`."""
        values = dict(value)
        values["outputs"] = [Output(**output) for output in value["outputs"]]
        return Record(**values)


def failed(item: Item, reason: str, message: str, **more: Any) -> Record:
    """The record of an item that came to nothing."""
    return Record(item.index, item.id, item.name, "failed", reason, message, **more)
