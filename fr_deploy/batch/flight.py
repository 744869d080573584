"""A photo between its beginning and its outcome, as the parent keeps it: nothing of it is mapped here."""

from dataclasses import dataclass, field

from fr_deploy.batch.blame import Strikes
from fr_deploy.batch.channel import Parcel
from fr_deploy.batch.item import Item
from fr_deploy.batch.messages import FinishTask, PreparedParcels


@dataclass(eq=False)
class Flight:
    """One photo that has been begun."""

    item: Item
    alone: bool
    parcels: PreparedParcels | None = None
    restored: dict[int, Parcel] = field(default_factory=dict[int, Parcel])
    """By the first face of each."""
    to_restore: int = 0
    """Faces."""
    strikes: Strikes = field(default_factory=Strikes)
    over: bool = False
    """It has its outcome; results that still come are dropped."""
    not_before: int = 0
    """It is tried again after so many photos have been begun."""

    @property
    def held_bytes(self) -> int:
        """Of memory that is shared with the children."""
        parcels = [*self.restored.values()]
        if self.parcels is not None:
            parcels += [self.parcels.prepared, self.parcels.crops]
        return sum(parcel.size for parcel in parcels)

    def prepared(self, parcels: PreparedParcels) -> None:
        """A preparer is done with it."""
        self.parcels = parcels
        self.to_restore = parcels.faces

    def crops(self) -> Parcel:
        """What a device needs of it."""
        assert self.parcels is not None
        return self.parcels.crops

    def restored_part(self, start: int, stop: int, part: Parcel) -> bool:
        """A device is done with some of its faces.

        Returns:
            Whether those were the last ones.
        """
        self.restored[start] = part
        self.to_restore -= stop - start
        return self.to_restore == 0

    def finish_task(self) -> FinishTask:
        """What a finisher needs of it."""
        assert self.parcels is not None
        parts = tuple(part for _, part in sorted(self.restored.items(), key=lambda pair: pair[0]))
        return FinishTask(self.parcels.prepared, self.parcels.crops, parts)

    def close(self) -> None:
        """It is over: give its memory back."""
        self.over = True
        for part in self.restored.values():
            part.close()
        if self.parcels is not None:
            self.parcels.prepared.close()
            self.parcels.crops.close()
