"""What travels between the stages of a run: plain dataclasses, their large arrays in fields of their own.

    Item -> prepare -> Prepared; its crops, as `Faces` -> device -> Restored; both, as `Finish` -> finish -> Finished

Importing this module costs numpy alone: the process that moves these objects decodes nothing.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fr_deploy.batch.item import Item, Record

if TYPE_CHECKING:  # they bring numpy alone, but their packages bring torch
    from fr_deploy.faces import Face
    from fr_deploy.photo import Photo

SIDE = 512
"""Pixels of a crop's side."""


@dataclass
class Prepared:
    """A photo read, its faces found and cut out."""

    item: Item
    in_sha256: str
    photo: "Photo"
    """Upright, sRGB."""
    faces: list["Face"]
    """Those that are restored; empty if the photo is one aligned face."""
    matrices: list[NDArray[np.float64]]
    """[2, 3] of each face, from pixels of the photo to pixels of its crop."""
    crops: NDArray[np.uint8]
    """[N, 512, 512, 3], of each face, or the one crop of an aligned photo; N may be 0."""
    ms: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds: fetch, decode, detect (and align)."""


@dataclass
class Faces:
    """A batch for a device, of one photo or of many."""

    crops: NDArray[np.uint8]
    """[N, 512, 512, 3], N >= 1."""


@dataclass
class Restored:
    """What a device made of a batch, or the part of it that belongs to one photo."""

    crops: NDArray[np.uint8]
    """[N, 512, 512, 3]."""
    angles: list[float] | None = None
    """N, degrees of deg_dlib: how far the model moved each face. None: not measured."""
    kept: list[float] | None = None
    """N, the same of `crops`, after the guard."""
    blends: list[float] | None = None
    """N, the share of the restored face that the guard left: 1, 0.75, 0.5, 0.25 or 0."""
    ms: float = 0.0
    """Of the whole batch."""

    def part(self, start: int, stop: int) -> "Restored":
        """The faces `start` to `stop`, those of one photo; a view of the same memory."""
        angles, kept, blends = (
            None if values is None else values[start:stop]
            for values in (self.angles, self.kept, self.blends)
        )
        return Restored(self.crops[start:stop], angles, kept, blends, self.ms)


def nothing_restored() -> Restored:
    """What takes the place of a device's answer for a photo without faces."""
    return Restored(np.empty((0, SIDE, SIDE, 3), np.uint8))


@dataclass
class Finish:
    """A photo to be finished."""

    prepared: Prepared
    restored: Restored
    """Of this photo's crops, in their order."""


@dataclass
class Finished:
    """A photo whose outputs lie on the disk, synced, under the names of parts."""

    record: Record
    """Its `outputs` name the places that the parts are to be moved to."""
    parts: list[str]
    """Absolute paths, in the order of `record.outputs`."""
    pictures: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    """JPEG before and after, if asked for: the photo, then its first face."""
