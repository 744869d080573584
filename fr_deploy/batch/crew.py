"""All children of a run: started, listened to, ended when they take too long, and replaced when they end."""

import pickle
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fr_deploy import errors
from fr_deploy.batch.blame import Death
from fr_deploy.batch.channel import GarbledError
from fr_deploy.batch.child import Start
from fr_deploy.batch.item import Record
from fr_deploy.batch.messages import Fault, PreparedParcels, Ready, Reply, RestoredParcels
from fr_deploy.batch.plan import Pace
from fr_deploy.batch.processes import DEPTH, Child
from fr_deploy.batch.stage import ROLES, Role, Stage, Stages
from fr_deploy.batch.stats import Stats
from fr_deploy.batch.work import Finished
from fr_deploy.errors import FrDeployError, ResourceError, UsageError

SETUP_SECONDS: dict[Role, float] = {"prepare": 60.0, "device": 300.0, "finish": 60.0}
MOST_SETUP_DEATHS = 3
MOST_DEATHS_IN_A_ROW = 20

_ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FrDeployError)
}
Events = Callable[[str], None]


@dataclass(frozen=True)
class Said:
    """A child answered a task."""

    child: Child
    job: Any
    answer: Reply | Fault


@dataclass(frozen=True)
class Died:
    """A child ended; another one is in its place."""

    death: Death
    jobs: list[Any]
    """Its tasks without an answer; it worked on the first."""


class Crew:
    """The children of all roles.

    Args:
        stages: what they run.
        pace: how many they are, and how long they may take.
        stats: where restarts are counted.
        events: told of every end, in a line of text.

    Raises:
        UsageError: a role has no process.
    """

    def __init__(self, stages: Stages, pace: Pace, stats: Stats, events: Events) -> None:
        if not (stages.devices and pace.preparers > 0 and pace.finishers > 0):
            raise UsageError("a run needs at least one process of each kind")
        self._pace = pace
        self._stats = stats
        self._events = events
        self._selector = selectors.DefaultSelector()
        self._preload = stages.preload
        self._was_ready: set[Role] = set()
        self._setup_deaths = dict.fromkeys(ROLES, 0)
        self._row = dict.fromkeys(ROLES, 0)
        self._starts: dict[Role, list[Start]] = {
            "prepare": [_start("prepare", stages.prepare, pace.child_bytes)] * pace.preparers,
            "device": [_start("device", stage) for stage in stages.devices],
            "finish": [_start("finish", stages.finish)] * pace.finishers,
        }
        self.children: dict[Role, list[Child]] = {role: [] for role in ROLES}

    def start(self) -> None:
        """Start every child."""
        for role in ROLES:
            self._stats.processes[role] = len(self._starts[role])
            for number, start in enumerate(self._starts[role]):
                self.children[role].append(self._new(start, number))

    def end(self) -> None:
        """End every child at once."""
        for child in self._all():
            child.end()
        self._selector.close()

    @property
    def ready(self) -> bool:
        """Whether every role has a child that is set up."""
        return all(any(child.ready for child in children) for children in self.children.values())

    def free(self, role: Role) -> Child | None:
        """The child of a role with the fewest tasks, if it can take one more."""
        open_ones = [c for c in self.children[role] if c.ready and len(c.jobs) < DEPTH]
        return min(open_ones, key=lambda child: len(child.jobs), default=None)

    def at_work(self, role: Role) -> int:
        """Tasks that the children of a role have."""
        return sum(len(child.jobs) for child in self.children[role])

    def poll(self, seconds: float) -> Iterator[Said | Died]:
        """What happens next.

        Args:
            seconds: to wait at most.

        Raises:
            FrDeployError: a stage could not be set up.
            ResourceError: children end again and again.
        """
        now = time.monotonic()
        ends = (child.since + limit for child in self._all() if (limit := self._limit(child)))
        seconds = max(0.0, min([seconds, *(end - now for end in ends)]))
        for key, _ in self._selector.select(seconds):
            yield from self._hear(key.data)
        # After what was said, for the parent itself may have been kept from listening.
        now = time.monotonic()
        for child in list(self._all()):
            limit = self._limit(child)
            if limit and now - child.since > limit:
                yield self.dismiss(child, Death(child.role, hang_seconds=limit))

    def dismiss(self, child: Child, death: Death) -> Died:
        """End a child that did something wrong, and start another one."""
        self._selector.unregister(child.channel)
        child.end()
        return self._replaced(child, death)

    def _hear(self, child: Child) -> Iterator[Said | Died]:
        try:
            for message in child.hear():
                if isinstance(message, Ready) and not child.ready:
                    child.ready = True
                    self._setup_deaths[child.role] = 0
                    self._was_ready.add(child.role)
                elif isinstance(message, Fault) and not child.ready:
                    raise _setup_error(child.role, message)
                elif isinstance(message, Reply | Fault) and child.jobs and _fits(child, message):
                    job = child.answered()
                    if isinstance(message, Reply) or message.error:
                        self._row[child.role] = 0
                    self._stats.got(child.role, message.seconds)
                    yield Said(child, job, message)
                    if self.children[child.role][child.number] is not child:
                        return  # dismissed for what it said
                else:
                    raise GarbledError(f"{type(message).__name__} out of turn")
        except EOFError:
            self._selector.unregister(child.channel)
            code = child.ended()
            death = Death(child.role, signal=max(0, -code), code=max(0, code))
            yield self._replaced(child, death)
        except GarbledError as error:
            text = f"sent something that is no answer ({error})"
            yield self.dismiss(child, Death(child.role, error=text))

    def _replaced(self, child: Child, death: Death) -> Died:
        role = child.role
        self._events(f"{role} process {child.number} {death}; another one takes its place")
        self._row[role] += 1
        # One that was set up before, and is killed at it now, is killed by somebody; that has the larger limit.
        outside = role in self._was_ready and death.signal == signal.SIGKILL
        self._setup_deaths[role] += not (child.ready or outside)
        if self._setup_deaths[role] >= MOST_SETUP_DEATHS:
            raise ResourceError(
                f"the {role} process ended {MOST_SETUP_DEATHS} times in a row before it was set up; "
                f"the last one {death}. If memory is short, use fewer processes"
            )
        if self._row[role] >= MOST_DEATHS_IN_A_ROW:
            raise ResourceError(
                f"{MOST_DEATHS_IN_A_ROW} {role} processes ended one after the other without a result; "
                f"the last one {death}. Mend that, then resume"
            )
        self._stats.restarts[role] += 1
        self.children[role][child.number] = self._new(
            self._starts[role][child.number], child.number
        )
        return Died(death, list(child.jobs))

    def _new(self, start: Start, number: int) -> Child:
        child = Child(start, number, self._preload)
        self._selector.register(child.channel, selectors.EVENT_READ, child)
        return child

    def _limit(self, child: Child) -> float:
        """Seconds that what it does now may take; 0: it does nothing."""
        if not child.ready:
            return SETUP_SECONDS[child.role]
        if not child.jobs:
            return 0.0
        pace = self._pace
        return pace.device_seconds if child.role == "device" else pace.item_seconds

    def _all(self) -> Iterator[Child]:
        for children in self.children.values():
            yield from children


def _start(role: Role, stage: Stage, address_space: int | None = None) -> Start:
    return Start(role, pickle.dumps(stage), address_space)


def _fits(child: Child, message: Reply | Fault) -> bool:
    """Whether a message answers the task that its child is at work on; the child may be under a file's control."""
    parts = vars(message)
    if not isinstance(parts["seconds"], int | float):
        return False
    if isinstance(message, Fault):
        return all(isinstance(parts[k], str) for k in ("error", "reason", "message", "trace"))
    value = message.value
    if child.role == "device":
        pieces = len(child.jobs[0].pieces)
        return isinstance(value, RestoredParcels) and value.plausible(pieces)
    if child.role == "prepare" and isinstance(value, PreparedParcels):
        return value.plausible()
    record = value.record if child.role == "finish" and isinstance(value, Finished) else value
    return isinstance(record, Record) and record.index == child.jobs[0].item.index


def expected_error(fault: Fault) -> FrDeployError | None:
    """The error of ours that a child reported; None if it was another one."""
    kind = _ERRORS.get(fault.error)
    if kind is errors.ImageError:
        return errors.ImageError(fault.reason, fault.message)
    return kind(fault.message) if kind is not None else None


def _setup_error(role: Role, fault: Fault) -> FrDeployError:
    text = f"the {role} process could not be set up: {fault.message}"
    return expected_error(fault) or FrDeployError(text)
