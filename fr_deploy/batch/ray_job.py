"""What goes to an actor and what comes back: addresses of photos and records, never pixels."""

from dataclasses import dataclass, field
from pathlib import Path

from fr_deploy.batch.ask import Ask
from fr_deploy.batch.engine import Done
from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.stats import Stats

CHUNK = 32
"""Photos of one call, at most: what a call that never arrives can take with it."""


@dataclass(frozen=True)
class Job:
    """What every actor of a run is told."""

    ask: Ask
    plan: Plan
    destination: Path
    part_folder: Path
    probe: Path
    """A file in the folder of parts, which proves that an actor sees the same disk."""
    secret: str
    """What is in it."""
    sources: tuple[str, ...]
    """Files and folders that an actor must see."""
    version: str
    """Of fr-deploy."""
    threads: str | None = None
    """OMP_NUM_THREADS where the run was begun: other numbers of threads may give other last bits."""
    share: int = 1
    """Actors of one machine, among which its cores are divided."""


@dataclass(frozen=True)
class Errand:
    """One photo on its way to an actor."""

    item: Item
    alone: bool
    """Nothing else is in flight there."""


@dataclass
class Report:
    """What an actor answers to each call."""

    host: str
    done: list[Done] = field(default_factory=list[Done])
    """Outcomes since the last report."""
    capacity: int = 0
    """Photos that it can have at a time; 0: it is not set up yet."""
    stats: Stats = field(default_factory=Stats)
    """Since the actor began."""
    lines: list[str] = field(default_factory=list[str])
    """What its engine tells."""
    error: tuple[str, str] | None = None
    """Name of the class, and message, of what ended its engine."""
