"""How a run is getting on: what the progress bar shows, and what tells where its time goes."""

import time
from dataclasses import dataclass, field

from fr_deploy.batch.stage import ROLES, Role


def _zeros() -> dict[Role, float]:
    return dict.fromkeys(ROLES, 0.0)


def _counts() -> dict[Role, int]:
    return dict.fromkeys(ROLES, 0)


@dataclass
class Stats:
    """Figures of one run, kept up to date by the engine; any thread may read them."""

    begun: int = 0
    """Photos."""
    done: int = 0
    """Photos with an outcome, failed ones included."""
    faces: int = 0
    """Restored."""
    batches: int = 0
    """Restored."""
    processes: dict[Role, int] = field(default_factory=_counts)
    """Of each role."""
    busy_seconds: dict[Role, float] = field(default_factory=_zeros)
    """Inside the stages, summed over their processes."""
    first_task: dict[Role, float] = field(default_factory=_zeros)
    """When a role got its first task, on the monotonic clock; 0: not yet."""
    last_reply: dict[Role, float] = field(default_factory=_zeros)
    """When its last result came, likewise."""
    restarts: dict[Role, int] = field(default_factory=_counts)
    """Processes that took the place of one that ended."""
    waiting: dict[Role, int] = field(default_factory=_counts)
    """Photos that wait for a preparer or a finisher; faces that wait for a device."""

    @property
    def batch_fill(self) -> float:
        """Faces a batch, on average."""
        return self.faces / self.batches if self.batches else 0.0

    def busy_fraction(self, role: Role) -> float:
        """The share of the time between its first task and its last result that a role's stages worked, 0 to 1."""
        span = (self.last_reply[role] - self.first_task[role]) * self.processes[role]
        return min(1.0, self.busy_seconds[role] / span) if span > 0 else 0.0

    def gave(self, role: Role) -> None:
        """A task was sent."""
        self.first_task[role] = self.first_task[role] or time.monotonic()

    def got(self, role: Role, seconds: float) -> None:
        """A result came, after so many seconds in the stage."""
        self.busy_seconds[role] += seconds
        self.last_reply[role] = time.monotonic()
