"""What the parent and its children say to each other: small records; everything large in them is a parcel."""

from dataclasses import dataclass
from typing import Any

from fr_deploy.batch.channel import Parcel
from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.work import Finished


@dataclass(frozen=True)
class PrepareTask:
    """To a preparer."""

    item: Item


@dataclass(frozen=True)
class PreparedParcels:
    """From a preparer: the photo, and its crops apart, because a device needs those alone."""

    faces: int
    prepared: Parcel
    """A Prepared without its crops."""
    crops: Parcel

    def plausible(self) -> bool:
        """Whether it is what it is said to be."""
        faces = vars(self)["faces"]
        return isinstance(faces, int) and faces >= 0 and _parcels(self.prepared, self.crops)


@dataclass(frozen=True)
class RestoreTask:
    """To a device: crops of one photo or of many."""

    pieces: tuple[tuple[Parcel, int, int], ...]
    """Crops, and which of them: first, last + 1."""


@dataclass(frozen=True)
class RestoredParcels:
    """From a device: one Restored for each piece."""

    parts: tuple[Parcel, ...]

    def plausible(self, pieces: int) -> bool:
        """Whether it is what it is said to be, the answer to so many pieces."""
        parts = vars(self)["parts"]
        return isinstance(parts, tuple) and len(self.parts) == pieces and _parcels(*self.parts)


@dataclass(frozen=True)
class FinishTask:
    """To a finisher."""

    prepared: Parcel
    crops: Parcel
    restored: tuple[Parcel, ...]
    """The photo's faces, in order; several where it had more than a batch."""


@dataclass(frozen=True)
class Ready:
    """From any child, once: its stage is set up."""


@dataclass(frozen=True)
class Reply:
    """The result of a task."""

    value: PreparedParcels | RestoredParcels | Finished | Record
    seconds: float
    """That the stage itself took."""


@dataclass(frozen=True)
class Fault:
    """An error instead of a result, or instead of Ready."""

    error: str
    """The class of `errors.py`; empty: something unexpected."""
    reason: str
    message: str
    trace: str = ""
    seconds: float = 0.0
    """That the stage itself took."""


def _parcels(*values: Any) -> bool:
    return all(isinstance(value, Parcel) and value.plausible for value in values)
