"""Faces of many photos, put together to batches for the devices."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fr_deploy.batch.channel import MOST_MEMORIES

Owner = TypeVar("Owner")

PATIENCE = 8
"""A suspect waits for at most so many batches: its memory and its place among those in flight are held meanwhile."""


@dataclass(frozen=True)
class Piece(Generic[Owner]):
    """Faces `start` to `stop` of one photo."""

    owner: Owner
    start: int
    stop: int
    since: float
    """When it began to wait, on the monotonic clock."""

    @property
    def faces(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True)
class Batch(Generic[Owner]):
    """What a device gets at once."""

    pieces: tuple[Piece[Owner], ...]
    suspect: bool = False
    """It is one piece that was in a batch of which a device died; if that one dies too, the photo is to blame.

    Nothing is sent ahead of it or behind it: what a device is at work on would not be certain.
    """

    @property
    def faces(self) -> int:
        """How many."""
        return sum(piece.faces for piece in self.pieces)


class Batcher(Generic[Owner]):
    """A queue of faces, first come, first served; photos are split where a batch is full.

    Args:
        batch: faces a batch at most.
        flush_seconds: a batch that is not full is taken after its oldest face has waited this long.
    """

    def __init__(self, batch: int, flush_seconds: float) -> None:
        self._batch = batch
        self._flush_seconds = flush_seconds
        self._queue: deque[Piece[Owner]] = deque()
        self._suspects: deque[Piece[Owner]] = deque()
        self._passed_over = 0
        self._faces = 0

    @property
    def faces(self) -> int:
        """That wait, those of suspects included."""
        return self._faces + sum(piece.faces for piece in self._suspects)

    def add(self, owner: Owner, faces: int, now: float) -> None:
        """Queue a photo.

        Args:
            owner: the photo.
            faces: how many it has, at least one.
            now: on the monotonic clock, seconds.
        """
        self._queue.append(Piece(owner, 0, faces, now))
        self._faces += faces

    def put_back(self, pieces: Iterable[Piece[Owner]]) -> None:
        """Queue the pieces of a batch in front again: its device died before it came to it."""
        pieces = list(pieces)
        self._queue.extendleft(reversed(pieces))
        self._faces += sum(piece.faces for piece in pieces)

    def suspect(self, pieces: Iterable[Piece[Owner]]) -> None:
        """Each piece gets a batch of its own: a device died of one of them."""
        self._suspects.extend(pieces)

    def drop(self, owner: Owner) -> None:
        """Forget a photo that was given up."""
        self._queue = deque(piece for piece in self._queue if piece.owner is not owner)
        self._suspects = deque(piece for piece in self._suspects if piece.owner is not owner)
        self._faces = sum(piece.faces for piece in self._queue)

    def take(self, now: float, *, idle: bool, coming: bool) -> Batch[Owner] | None:
        """The next batch for a device, if it is time for one.

        Args:
            now: on the monotonic clock, seconds.
            idle: the device has nothing to do; if it has, only a full batch is worth sending ahead.
            coming: more faces may come before long, so that waiting can fill the batch.
        """
        ready = self._faces >= self._batch or (
            bool(self._queue) and idle and (not coming or now >= self._due())
        )
        if self._suspects and idle and (not ready or self._passed_over >= PATIENCE):
            self._passed_over = 0
            return Batch((self._suspects.popleft(),), suspect=True)
        if not ready:
            return None
        if self._suspects and not idle and self._passed_over >= PATIENCE:
            return None  # let the device become idle
        self._passed_over += bool(self._suspects)
        return self._cut()

    def wait(self, now: float) -> float | None:
        """Seconds until the oldest face has waited long enough; None: nothing waits."""
        return max(0.0, self._due() - now) if self._queue else None

    def _due(self) -> float:
        return self._queue[0].since + self._flush_seconds

    def _cut(self) -> Batch[Owner]:
        room = self._batch
        pieces: list[Piece[Owner]] = []
        while room and self._queue and len(pieces) < MOST_MEMORIES:
            piece = self._queue.popleft()
            if piece.faces > room:
                middle = piece.start + room
                self._queue.appendleft(Piece(piece.owner, middle, piece.stop, piece.since))
                piece = Piece(piece.owner, piece.start, middle, piece.since)
            pieces.append(piece)
            room -= piece.faces
        batch = Batch(tuple(pieces))
        self._faces -= batch.faces
        return batch
