"""The engine of a run: moves photos through the stages until each has its outcome, whichever process ends on the way.

One thread; it never maps a picture. Its children prepare, restore and finish; what they made is passed on by file
descriptor. A child that ends is replaced, and what it worked on is tried again or given up (`blame.py`).
"""

import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeAlias

from fr_deploy.batch.batcher import Batch, Batcher
from fr_deploy.batch.blame import Blame, Death
from fr_deploy.batch.crew import Crew, Died, Events, Said, expected_error
from fr_deploy.batch.flight import Flight
from fr_deploy.batch.item import Item, Record, failed
from fr_deploy.batch.messages import (
    Fault,
    PreparedParcels,
    PrepareTask,
    RestoredParcels,
    RestoreTask,
)
from fr_deploy.batch.plan import Pace
from fr_deploy.batch.source import Source
from fr_deploy.batch.stage import Role, Stages
from fr_deploy.batch.stats import Stats
from fr_deploy.batch.work import Finished
from fr_deploy.errors import ImageError

Done: TypeAlias = Finished | Record
Items: TypeAlias = Iterator[tuple[Item, bool] | None]

_GLANCE_SECONDS = 0.1
"""How often `stop` and `abort` are looked at."""
_OTHERS_FIRST = 4
"""A photo that was struck lets so many others begin: if they are struck too, it is nobody's fault."""
_FILES_EACH = 4  # of a photo in flight: what was prepared, its crops, and what was restored of it
_log = logging.getLogger(__name__)


def _silent(_: str) -> None:
    """What the engine tells to nobody."""


class Engine:
    """Runs the stages in processes of their own.

    Args:
        stages: what is done.
        pace: how many processes there are, how much is in flight, how long a photo may take.
        events: told in a line of text when a process is replaced.
    """

    def __init__(self, stages: Stages, pace: Pace, events: Events | None = None) -> None:
        self.stats = Stats()
        self._pace = pace
        self._crew = Crew(stages, pace, self.stats, events or _silent)
        self._blame = Blame(pace.attempts)
        self._batcher: Batcher[Flight] = Batcher(pace.batch, pace.flush_seconds)
        self._again: deque[Flight] = deque()
        self._to_finish: deque[Flight] = deque()
        self._flights: set[Flight] = set()
        self._held = 0

    def run(
        self,
        items: Items,
        on_done: Callable[[Done], None],
        *,
        on_begin: Callable[[Item, bool], None] = lambda item, alone: None,
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> None:
        """Bring every photo to its outcome; called once for an engine.

        Args:
            items: photos, each with whether nothing else may be in flight beside it; None: none at this time.
            on_done: told each outcome, in any order. While it blocks, nothing goes on.
            on_begin: told of each photo, and whether it is alone, before any process sees it.
            stop: when set, no photo is begun any more; those begun are brought to their end.
            abort: when set, the run returns at once.

        Raises:
            FrDeployError: a stage could not be set up, or reported more than a bad photo (a full disk, say).
            ResourceError: processes end again and again without a result.
        """
        self._source = Source(items, self._pace.in_flight)
        self._on_done = on_done
        self._on_begin = on_begin
        _make_room_for_files(self._pace.in_flight * _FILES_EACH)
        try:
            self._crew.start()
            while not (abort and abort.is_set()):
                if stop and stop.is_set():
                    self._source.stop()
                if (
                    self._crew.ready
                ):  # or else photos would be begun that a missing model never ends
                    self._dispatch()
                if self._source.exhausted and not self._flights:
                    break
                for event in self._crew.poll(self._patience()):
                    self._handle(event)
        finally:
            self._crew.end()
            for flight in self._flights:
                flight.close()

    def pids(self, role: Role) -> list[int]:
        """The processes of a role, as they are now."""
        return [child.pid for child in self._crew.children[role]]

    def _patience(self) -> float:
        wait = self._batcher.wait(time.monotonic())
        # A batch that is due, but whose device is busy, waits for the device and not for the clock.
        return _GLANCE_SECONDS if not wait else min(wait, _GLANCE_SECONDS)

    def _dispatch(self) -> None:
        """Give every child that can take one a task."""
        while (child := self._crew.free("finish")) and self._to_finish:
            flight = self._to_finish.popleft()
            if flight.over:
                continue
            if not child.give(flight, flight.finish_task()):
                self._to_finish.appendleft(flight)
                break
            self.stats.gave("finish")
        while child := self._crew.free("prepare"):
            flight = self._next_to_prepare()
            if flight is None:
                break
            if not child.give(flight, PrepareTask(flight.item)):
                self._again.appendleft(flight)
                break
            self.stats.gave("prepare")
        self._dispatch_batches()
        self.stats.waiting["prepare"] = len(self._again)
        self.stats.waiting["device"] = self._batcher.faces
        self.stats.waiting["finish"] = len(self._to_finish)

    def _dispatch_batches(self) -> None:
        while child := self._crew.free("device"):
            if child.jobs and child.jobs[0].suspect:
                break  # the one with the fewest: the others have no room either
            coming = bool(self._crew.at_work("prepare") or self._again)
            batch = self._batcher.take(time.monotonic(), idle=not child.jobs, coming=coming)
            if batch is None:
                break
            pieces = tuple((p.owner.crops(), p.start, p.stop) for p in batch.pieces)
            if not child.give(batch, RestoreTask(pieces)):
                self._put_back(batch)
                break
            self.stats.gave("device")

    def _put_back(self, batch: Batch[Flight]) -> None:
        pieces = [piece for piece in batch.pieces if not piece.owner.over]
        (self._batcher.suspect if batch.suspect else self._batcher.put_back)(pieces)

    def _next_to_prepare(self) -> Flight | None:
        alone = any(flight.alone for flight in self._flights) if len(self._flights) == 1 else False
        can_begin = self._source.can_begin(len(self._flights), self._held, alone)
        if self._again and (not can_begin or self._again[0].not_before <= self.stats.begun):
            return self._again.popleft()
        if not can_begin:
            return None
        flight = Flight(*self._source.begin())
        self._flights.add(flight)
        self.stats.begun += 1
        self._on_begin(flight.item, flight.alone)
        return flight

    def _handle(self, event: Said | Died) -> None:
        if isinstance(event, Died):
            self._bury(event)
        elif isinstance(event.answer, Fault):
            self._fault(event, event.answer)
        elif isinstance(event.answer.value, PreparedParcels):
            self._prepared(event.job, event.answer.value)
        elif isinstance(event.answer.value, RestoredParcels):
            self._restored(event.job, event.answer.value)
        else:
            self._blame.went_well(event.job.strikes)
            self._done(event.job, event.answer.value)

    def _prepared(self, flight: Flight, parcels: PreparedParcels) -> None:
        self._blame.went_well(flight.strikes)
        flight.prepared(parcels)
        self._held += flight.held_bytes
        if parcels.faces:
            self._batcher.add(flight, parcels.faces, time.monotonic())
        else:
            self._to_finish.append(flight)

    def _restored(self, batch: Batch[Flight], parcels: RestoredParcels) -> None:
        self.stats.batches += 1
        self.stats.faces += batch.faces
        for piece, part in zip(batch.pieces, parcels.parts, strict=True):
            flight = piece.owner
            if batch.suspect:
                self._blame.went_well(flight.strikes)
            if flight.over:
                continue
            self._held += part.size
            if flight.restored_part(piece.start, piece.stop, part):
                self._to_finish.append(flight)

    def _fault(self, event: Said, fault: Fault) -> None:
        """A stage raised an error."""
        error = expected_error(fault)
        if error is not None and not isinstance(error, ImageError):
            raise error
        _log.debug("%s", fault.trace)
        child, job = event.child, event.job
        if isinstance(job, Batch):
            if (
                error is None
            ):  # a device may be unfit for all that follows, as CUDA is after some errors
                child.jobs.appendleft(job)
                self._bury(self._crew.dismiss(child, Death("device", error=fault.message)))
            elif job.suspect:
                self._fail(job.pieces[0].owner, fault.reason, fault.message)
            else:
                self._batcher.suspect(piece for piece in job.pieces if not piece.owner.over)
            return
        self._blame.went_well(job.strikes)
        self._fail(job, fault.reason, fault.message)

    def _bury(self, event: Died) -> None:
        """A child died: its first task is to blame, the others only have to be sent again."""
        role, jobs = event.death.role, event.jobs
        for job in reversed(jobs[1:]):
            if role == "device":
                self._put_back(job)
            else:
                (self._again if role == "prepare" else self._to_finish).appendleft(job)
        if not jobs:
            return
        first = jobs[0]
        if not isinstance(first, Batch):
            if not self._struck(first, event.death):
                first.not_before = self.stats.begun + _OTHERS_FIRST
                (self._again if role == "prepare" else self._to_finish).append(first)
        elif not first.suspect or not self._struck(first.pieces[0].owner, event.death):
            self._batcher.suspect(piece for piece in first.pieces if not piece.owner.over)

    def _struck(self, flight: Flight, death: Death) -> bool:
        """Whether the photo is given up after one more death over it."""
        if flight.over:
            return True
        if self._blame.strike(flight.strikes, death):
            times = flight.strikes.count
            text = f"the {death.role} process {death}; tried {times} times"
            self._fail(flight, death.reason, text)
        return flight.over

    def _fail(self, flight: Flight, reason: str, message: str) -> None:
        if not flight.over:
            self._batcher.drop(flight)
            self._done(flight, failed(flight.item, reason, message))

    def _done(self, flight: Flight, done: Done) -> None:
        record = done if isinstance(done, Record) else done.record
        # The try that brought this outcome counts, unless the outcome is that there was none.
        record.attempts = max(1, flight.strikes.count + (record.reason not in _DEADLY))
        self._held -= flight.held_bytes
        flight.close()
        self._flights.discard(flight)
        self.stats.done += 1
        self._on_done(done)


_DEADLY = ("decoder_killed", "device_killed", "encoder_killed", "timeout")


def _make_room_for_files(number: int) -> None:
    """Raise the limit of open files, as far as this process may: 1,024 are 250 photos in flight."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
