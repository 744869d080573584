"""The engine of a run under Ray: the same calls as `Engine`, its photos moved by actors on other machines."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import fr_deploy
from fr_deploy.batch.crew import Events, expected_error
from fr_deploy.batch.durable import disk_errors
from fr_deploy.batch.engine import Done, Items
from fr_deploy.batch.item import Item
from fr_deploy.batch.messages import Fault
from fr_deploy.batch.opening import Start
from fr_deploy.batch.plan import Pace
from fr_deploy.batch.ray_desk import Desk
from fr_deploy.batch.ray_job import Errand, Job, Report
from fr_deploy.batch.stage import ROLES
from fr_deploy.batch.stats import Stats
from fr_deploy.errors import FrDeployError, ResourceError

MOST_SETUP_DEATHS = 3
MOST_DEATHS_IN_A_ROW = 20
_GLANCE_SECONDS = 0.1


class Member(Protocol):
    """An actor as the engine sees it."""

    held: set[int]
    """Indexes of the photos that it has."""
    report: Report | None
    """Its last one."""

    @property
    def name(self) -> str:
        """Of its machine."""
        ...

    def call(self, errands: list[Errand]) -> None:
        """Send photos; its answer comes by `Fleet.poll`."""
        ...


class Fleet(Protocol):
    """All actors of a run."""

    @property
    def members(self) -> Sequence[Member]:
        """Those that are at work."""
        ...

    def tend(self, job: Job) -> None:
        """Start an actor for each place that has none."""
        ...

    def poll(self, seconds: float) -> Iterable[tuple[Member, Report | str]]:
        """Reports, or how an actor ended, as they come; each is free for a call then.

        Args:
            seconds: to wait at most.
        """
        ...

    def end(self, members: Iterable[Member]) -> None:
        """End actors at once."""
        ...


class RayEngine:
    """Brings photos to their outcomes through a fleet of actors.

    Args:
        fleet: connected.
        start: what the run was given.
        pace: its folders and limits.
        watchdog_seconds: after so long without any record the actors are replaced, once; then the run ends.
        events: told when an actor is replaced.
    """

    def __init__(
        self,
        fleet: Fleet,
        start: Start,
        pace: Pace,
        watchdog_seconds: float,
        events: Events,
    ) -> None:
        self.stats = Stats()
        self._fleet, self._pace, self._events = fleet, pace, events
        self._watchdog = watchdog_seconds
        self._job = job_of(start, pace)
        self._past = Stats()  # of actors that have ended
        self._ended = self._row = self._setup_deaths = 0
        self._was_ready = self._barked = False
        self._quiet_since = 0.0

    def run(
        self,
        items: Items,
        on_done: Callable[[Done], None],
        *,
        on_begin: Callable[[Item, bool], None] = lambda item, alone: None,
        stop: threading.Event | None = None,
        abort: threading.Event | None = None,
    ) -> None:
        """Bring every photo to its outcome: as `Engine.run`.

        Raises:
            FrDeployError: as `Engine.run`, on any node.
            ResourceError: actors end again and again, or nothing comes from them.
        """
        self._desk, self._on_done = Desk(items, on_begin, self._pace.attempts), on_done
        self._quiet_since = time.monotonic()
        with disk_errors(self._pace.part_folder):
            self._job.probe.write_text(self._job.secret)
        try:
            while not (abort and abort.is_set()) and not self._desk.over:
                if stop and stop.is_set():
                    self._desk.stop()
                self._fleet.tend(self._job)
                for member, report in self._fleet.poll(_GLANCE_SECONDS):
                    self._hear(member, report)
                self._count()
                self._watch()
        finally:
            self._fleet.end(list(self._fleet.members))
            with suppress(OSError):
                self._job.probe.unlink()

    def _hear(self, member: Member, report: Report | str) -> None:
        if isinstance(report, str):
            self._bury(member, report)
            return
        for line in report.lines:
            self._events(line)
        for done in report.done:
            kept = self._desk.returned(done, member.held)
            if kept is not None:
                self._done(kept)
        if report.error:
            name, message = report.error
            raise expected_error(Fault(name, "", message, "", 0.0)) or FrDeployError(message)
        if report.capacity:
            self._setup_deaths, self._was_ready = 0, True
        if report.done:
            self._row, self._barked = 0, False
            self._quiet_since = time.monotonic()
        errands = self._desk.take(member.held, report.capacity)
        if errands and self._desk.flying == len(errands):
            self._quiet_since = time.monotonic()
        member.call(errands)

    def _done(self, done: Done) -> None:
        self.stats.done += 1
        self._on_done(done)

    def _bury(self, member: Member, text: str) -> None:
        """An actor has ended: another one takes its place, and what it had is begun again."""
        self._events(f"the actor on {member.name} {text}; another one takes its place")
        if member.report is not None:
            _add(self._past, member.report.stats)
            self._past.processes, self._past.waiting = Stats().processes, Stats().waiting
        self._ended += 1
        self._row += 1
        self._setup_deaths += not (member.report and member.report.capacity)
        self._fleet.end([member])
        remove_parts_of(self._pace.part_folder, member.held)
        for record in self._desk.lost(member.held, text):
            self._done(record)
        most = MOST_DEATHS_IN_A_ROW if self._was_ready else MOST_SETUP_DEATHS
        if self._row >= MOST_DEATHS_IN_A_ROW or self._setup_deaths >= most:
            raise ResourceError(
                f"{max(self._row, self._setup_deaths)} actors ended one after the other without a result; "
                f"the last one, on {member.name}, {text}. Mend that, then resume"
            )

    def _watch(self) -> None:
        """See that something comes at all."""
        if self._was_ready and not self._desk.flying:
            self._quiet_since = time.monotonic()
        quiet = time.monotonic() - self._quiet_since
        if quiet < self._watchdog:
            return
        if self._barked or not self._fleet.members:
            raise ResourceError(
                f"no record came from {len(self._fleet.members)} Ray actors in {quiet:.0f} s"
                f"{', nor from those before them' if self._barked else ''}; "
                "see Ray's logs of the nodes, then resume, or resume without --ray"
            )
        self._barked, self._quiet_since = True, time.monotonic()
        for member in list(self._fleet.members):
            self._bury(member, f"brought no record in {quiet:.0f} s")

    def _count(self) -> None:
        """Add the figures of all actors up."""
        total = Stats()
        for part in (self._past, *(m.report.stats for m in self._fleet.members if m.report)):
            _add(total, part)
        stats, now = self.stats, time.monotonic()
        stats.begun = self._desk.begun
        stats.faces, stats.batches = total.faces, total.batches
        for role in ROLES:
            if total.busy_seconds[role] > stats.busy_seconds[role]:
                stats.first_task[role] = stats.first_task[role] or now
                stats.last_reply[role] = now
            stats.busy_seconds[role] = total.busy_seconds[role]
            stats.waiting[role] = total.waiting[role]
            stats.processes[role] = max(stats.processes[role], total.processes[role])
            stats.restarts[role] = total.restarts[role]
        stats.restarts["device"] += self._ended


def job_of(start: Start, pace: Pace) -> Job:
    """What the actors of a run are told."""
    return Job(
        ask=start.ask,
        plan=start.plan,
        destination=start.destination.absolute(),
        part_folder=pace.part_folder.absolute(),
        probe=pace.part_folder.absolute() / f".{secrets.token_hex(8)}.part",
        secret=secrets.token_hex(16),
        sources=tuple(source for source in start.ask.sources if os.path.exists(source)),
        version=fr_deploy.__version__,
        threads=dict(os.environ).get("OMP_NUM_THREADS"),
    )


def remove_parts_of(folder: Path, indexes: set[int]) -> None:
    """Remove what an actor wrote of photos that it never told of."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            index = entry.name.partition("-")[2].removesuffix(".part")
            if index.isdigit() and int(index) in indexes:
                with suppress(OSError):
                    os.unlink(entry.path)


def _add(total: Stats, part: Stats) -> None:
    total.faces += part.faces
    total.batches += part.batches
    for role in ROLES:
        total.busy_seconds[role] += part.busy_seconds[role]
        total.restarts[role] += part.restarts[role]
        total.processes[role] += part.processes[role]
        total.waiting[role] += part.waiting[role]
