"""How far a run has come, from its ledger alone; the run itself need not be at work."""

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fr_deploy.batch.ledger import read_standing
from fr_deploy.batch.lock import Holder, holder_of
from fr_deploy.batch.state import State

WINDOW_SECONDS = 60.0


@dataclass
class Status:
    """Counts of a run."""

    items: int = 0
    outcomes: int = 0
    by_status: Counter[str] = field(default_factory=Counter[str])
    by_reason: Counter[str] = field(default_factory=Counter[str])
    """Of failed items."""
    faces: int = 0
    """Restored."""
    first_at: float = 0.0
    """When the first outcome was committed, seconds since 1970; 0: there is none."""
    last_at: float = 0.0
    """The same of the last one."""
    per_second: float = 0.0
    """Outcomes in the last minute: up to now, if a run is at work, otherwise up to the last outcome."""
    holder: Holder | None = None
    """The run that is at work."""

    @property
    def remaining(self) -> int:
        """Items without outcome."""
        return self.items - self.outcomes

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        holder = vars(self.holder) if self.holder else None
        counts: dict[str, Mapping[str, int]] = {
            "by_status": dict(self.by_status),
            "by_reason": dict(self.by_reason),
        }
        return vars(self) | counts | {"holder": holder, "remaining": self.remaining}


def status(state: State) -> Status:
    """Read a run's ledger through, in constant memory; 10 s for a million items.

    Args:
        state: of the run; open to be read is enough.

    Raises:
        OSError: the ledger cannot be read.
    """
    found = Status(items=state.items, holder=holder_of(state.lock_path))
    times: deque[float] = deque()
    for _, record in read_standing(state.ledger_path):
        at = float(record["at"])
        found.outcomes += 1
        found.by_status[record["status"]] += 1
        if record["status"] == "failed":
            found.by_reason[record["reason"]] += 1
        found.faces += len(record["faces"])
        found.first_at = min(found.first_at or at, at)
        found.last_at = max(found.last_at, at)
        times.append(at)
        while times[0] < found.last_at - WINDOW_SECONDS:
            times.popleft()
    end = time.time() if found.holder else found.last_at
    recent = sum(at > end - WINDOW_SECONDS for at in times)
    span = min(WINDOW_SECONDS, end - found.first_at) if recent else 0.0
    found.per_second = recent / span if span > 0 else 0.0
    return found
