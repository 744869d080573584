"""Runs of the engine with the small stages of `batch_stages.py`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from batch_stages import ToyDevice, ToyFinish, ToyPrepare
from fr_deploy.batch.engine import Done, Engine
from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.plan import Pace
from fr_deploy.batch.stage import Stages
from fr_deploy.batch.work import Finished


def pace(**changes: Any) -> Pace:
    settings: dict[str, Any] = {"preparers": 2, "in_flight": 32, "item_seconds": 60.0}
    settings |= {"flush_seconds": 0.01, **changes}
    return Pace(Path("out"), Path("parts"), **settings)


def toy_stages(prepare: ToyPrepare | None = None, **device: Any) -> Stages:
    return Stages(prepare or ToyPrepare(), [ToyDevice(**device)], ToyFinish())


class Run:
    """One run of the engine, and what came of it."""

    def __init__(self, stages: Stages, speed: Pace) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.records: dict[str, Record] = {}
        self.engine = Engine(stages, speed, self.lines.append)
        self.after: Callable[[], None] = lambda: None

    def done(self, done: Done) -> None:
        record = done.record if isinstance(done, Finished) else done
        assert record.name not in self.records, "two outcomes"
        self.records[record.name] = record
        self.after()

    def __call__(self, items: Iterable[Item], **more: Any) -> "Run":
        self.engine.run(together(items), self.done, on_begin=self.note, **more)
        return self

    def note(self, item: Item, alone: bool) -> None:
        self.begun.append(item.name)

    def failures(self) -> dict[str, str]:
        return {name: r.reason for name, r in self.records.items() if r.status == "failed"}


def together(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    for each in items:
        yield each, False
