"""A run's figures while it goes on, from the engine, the ledger and the committer."""

import time
from collections.abc import Callable

from fr_deploy.batch.item import Record
from fr_deploy.batch.ledger import Ledger
from fr_deploy.batch.progress import Meter, Snapshot
from fr_deploy.batch.stage import Role
from fr_deploy.batch.stats import Stats
from fr_deploy.batch.summary import Load, Tally, bottleneck

_NAMES: dict[Role, str] = {"prepare": "prepare", "device": "restore", "finish": "finish"}
_SETTLED_S = 2.0
"""Before that, nobody can say where the time goes."""


class Live:
    """Takes snapshots; any thread may."""

    def __init__(
        self, ledger: Ledger, stats: Stats, total: Callable[[], int | None], batch: int
    ) -> None:
        """Begin with what earlier starts did.

        Args:
            ledger: of the run.
            stats: of its engine.
            total: items of the list; None while it grows.
            batch: faces that a batch has room for.
        """
        self.tally = Tally()
        self.tally.add_earlier(ledger.tally.counts)
        self.new = 0
        """Outcomes of this start."""
        self._ledger, self._stats = ledger, stats
        self.total = total
        self._batch, self._meter = batch, Meter()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this start."""
        return time.monotonic() - self._began

    def add(self, records: list[Record]) -> None:
        """Count outcomes; called by the committer."""
        for record in records:
            self.tally.add(record)
        self.new += len(records)

    def loads(self) -> dict[str, Load]:
        """How busy each stage was in this start."""
        stats = self._stats
        return {
            name: Load(stats.busy_fraction(role), stats.processes[role])
            for role, name in _NAMES.items()
        }

    def snapshot(self) -> Snapshot:
        """The run at this moment."""
        stats, total, done = self._stats, self.total(), self.tally.done
        images, faces = self._meter.rates(self.seconds, self.new, stats.faces)
        left = None if total is None else total - done
        loads = self.loads()
        known = stats.batches > 0 and self.seconds > _SETTLED_S
        return Snapshot(
            seconds=self.seconds,
            total=total,
            done=done,
            failed=self.tally.failed,
            in_flight=stats.begun - stats.done,
            images_per_s=images,
            faces_per_s=faces,
            eta_s=left / images if left is not None and images > 0 else None,
            batch_fill=stats.batch_fill / self._batch if stats.batches else None,
            device_busy=loads["restore"].share if stats.batches else None,
            bottleneck=bottleneck(loads) if known else "",
        )
