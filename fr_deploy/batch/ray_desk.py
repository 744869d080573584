"""Which photo goes to which actor next, and whose fault it was that an actor ended; knows nothing of Ray.

What an actor had when it ended is begun again, which is nobody's strike. A photo that was lost so three times runs
alone in its actor, behind all others; only deaths while it is alone there are strikes, judged as those of a child
(`blame.py`).
"""

import signal
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fr_deploy.batch.blame import Blame, Death, Strikes
from fr_deploy.batch.engine import Done, Items
from fr_deploy.batch.item import Item, Record, failed
from fr_deploy.batch.ray_job import CHUNK, Errand
from fr_deploy.batch.source import Source

LOSSES = 3
"""Ends of an actor that a photo was in among others, before it runs alone."""
ACTOR_KILLED = "actor_killed"


@dataclass(eq=False)
class Trip:
    """One photo that has been begun."""

    item: Item
    alone: bool
    """Nothing else is in flight anywhere."""
    losses: int = 0
    strikes: Strikes = field(default_factory=Strikes)

    @property
    def suspect(self) -> bool:
        """It runs alone in its actor."""
        return self.losses >= LOSSES


class Desk:
    """Photos that are in flight, of all actors.

    Args:
        items: as for `Engine.run`.
        on_begin: likewise.
        attempts: as `Blame`.
    """

    def __init__(self, items: Items, on_begin: Callable[[Item, bool], None], attempts: int) -> None:
        self._source = Source(items, 2**31)
        self._on_begin = on_begin
        self._blame = Blame(attempts)
        self._again: deque[Trip] = deque()
        self._trips: dict[int, Trip] = {}
        self.begun = 0

    @property
    def over(self) -> bool:
        """Nothing is in flight, and nothing will be."""
        return self._source.exhausted and not self._trips

    @property
    def flying(self) -> int:
        """Photos begun and not yet over."""
        return len(self._trips)

    def stop(self) -> None:
        """Begin none any more."""
        self._source.stop()

    def take(self, held: set[int], capacity: int) -> list[Errand]:
        """What an actor gets next.

        Args:
            held: indexes of the photos that it has; those that it gets are added.
            capacity: photos that it can have.
        """
        errands: list[Errand] = []
        while len(held) < capacity and len(errands) < CHUNK:
            trip = self._next(held)
            if trip is None:
                break
            held.add(trip.item.index)
            errands.append(Errand(trip.item, trip.alone or trip.suspect))
        return errands

    def returned(self, done: Done, held: set[int]) -> Done | None:
        """An actor has brought an outcome.

        Returns:
            The outcome, its attempts counted; None if the photo was not with this actor.
        """
        record = done if isinstance(done, Record) else done.record
        if record.index not in held:
            return None
        held.discard(record.index)
        trip = self._trips.pop(record.index)
        self._blame.went_well(trip.strikes)
        record.attempts += trip.losses + trip.strikes.count
        return done

    def lost(self, held: Iterable[int], text: str) -> list[Record]:
        """An actor has ended with these photos.

        Args:
            held: their indexes.
            text: how it ended.

        Returns:
            The outcomes of those that are given up.
        """
        given_up: list[Record] = []
        for index in sorted(held, reverse=True):
            trip = self._trips[index]
            if not trip.suspect:
                trip.losses += 1
            # By which signal is not told; this one is what the kernel ends a process with that takes its memory.
            elif self._blame.strike(trip.strikes, Death("device", signal=signal.SIGKILL)):
                del self._trips[index]
                times = trip.losses + trip.strikes.count
                message = f"its actor ended {times} times, at last with this photo alone; {text}"
                given_up.append(failed(trip.item, ACTOR_KILLED, message, attempts=times))
                continue
            (self._again.append if trip.suspect else self._again.appendleft)(trip)
        return given_up

    def _next(self, held: set[int]) -> Trip | None:
        if any(self._trips[index].suspect for index in held) or self._one_is_alone():
            return None
        again = self._again[0] if self._again else None
        if again is not None and not again.suspect and not (again.alone and self._others(again)):
            return self._again.popleft()
        if self._source.can_begin(len(self._trips), 0, alone=False):
            trip = Trip(*self._source.begin())
            self._trips[trip.item.index] = trip
            self.begun += 1
            self._on_begin(trip.item, trip.alone)
            return trip
        if again is None or held:
            return None
        return self._again.popleft()

    def _one_is_alone(self) -> bool:
        return len(self._trips) == 1 and not self._again and next(iter(self._trips.values())).alone

    def _others(self, trip: Trip) -> bool:
        return any(other is not trip for other in self._trips.values())
