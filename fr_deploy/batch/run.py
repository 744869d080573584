"""A run from its list to its end: list, state, engine, committer and progress put together."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from fr_deploy.batch.ask import Ask
from fr_deploy.batch.books import Books, make_sink, open_books
from fr_deploy.batch.committer import Committer
from fr_deploy.batch.device import ModelChoice, device_stages
from fr_deploy.batch.engine import Engine
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.finish import FinishStage
from fr_deploy.batch.item import Item, Record, failed
from fr_deploy.batch.live import Live
from fr_deploy.batch.opening import Start, open_run, refusal_lines
from fr_deploy.batch.pictures import Pictures
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.prepare import PrepareStage
from fr_deploy.batch.progress import Mode, Progress
from fr_deploy.batch.ray_choice import check_ray
from fr_deploy.batch.ray_engine import Fleet, RayEngine
from fr_deploy.batch.sidecar import SidecarStage
from fr_deploy.batch.signals import Interrupts
from fr_deploy.batch.stage import Stage, Stages
from fr_deploy.batch.state import State
from fr_deploy.batch.summary import Load, Tally
from fr_deploy.batch.watcher import Watcher, growing_items, watched_folders
from fr_deploy.batch.work import Finished
from fr_deploy.errors import FrDeployError, ImageError, UsageError
from fr_deploy.inputs import Refusal

BATCH = 16
PRELOAD = ("fr_deploy.batch.finish", "fr_deploy.images", "fr_deploy.pipeline")
"""What processes import; torch, which takes a second, too where faces are cut out. It is forked before it computes."""


@dataclass
class Ending:
    """How a start of a run ended."""

    tally: Tally
    total: int | None
    new: int
    """Outcomes of this start."""
    seconds: float
    """That it took."""
    loads: dict[str, Load]
    restarts: int
    """Processes that took the place of one that ended."""
    refusals: list[Refusal]
    signal: int = 0
    """That interrupted it; 0: none."""

    @property
    def complete(self) -> bool:
        """Every item of the list has an outcome."""
        return self.total is not None and self.tally.done >= self.total

    def exit_code(self) -> int:
        """As the command's: of what became of the items, or 128 + the signal if some are left."""
        if self.signal and not self.complete:
            return 128 + self.signal
        code = self.tally.exit_code() if self.tally.done else 0
        return code or (ImageError.exit_code if self.refusals else 0)


def pace_of(ask: Ask, destination: Path, part_folder: Path) -> Pace:
    """How many processes, and how much is in flight: by the machine's cores, unless it was said."""
    cores = len(os.sched_getaffinity(0))
    preparers = (
        ask.preparers or cores
    )  # they have four times the work of the others: 0.4 s for 2 megapixels
    # Two at least: they wait for the disk half of their time. 1,000 small photos took 16 s with two, 32 s with one.
    finishers = ask.finishers or max(2, cores // 2)
    batch = ask.batch or BATCH
    return Pace(
        destination=destination,
        part_folder=part_folder,
        preparers=preparers,
        finishers=finishers,
        batch=batch,
        # Two batches a device, so that one is filled while the other is restored, and what the others hold.
        in_flight=2 * batch * len(ask.devices) + 2 * (preparers + finishers),
        pictures=ask.pictures,
        measure_identity=ask.pictures and not ask.fake,
    )


def stages_of(ask: Ask, plan: Plan, pace: Pace) -> Stages:
    """What the processes of a run do.

    Raises:
        UsageError: a device that there cannot be.
    """
    choice = ModelChoice(
        model=ask.model,
        loras=ask.loras,
        engines=Path(ask.engines) if ask.engines else None,
        allow_unverified=ask.allow_unverified,
        trust=Path(ask.trust) if ask.trust else None,
        dtype=ask.dtype,
        backend=ask.backend,
        attention=ask.attention,
    )
    finish: Stage = FinishStage(plan, pace)
    if ask.sidecar:
        finish = SidecarStage(finish, pace.part_folder)
    prepare = PrepareStage(plan, Fetcher(plan.limits, allow_private=ask.allow_private))
    devices = device_stages(ask.devices, choice, plan, pace)
    return Stages(
        prepare, devices, finish, PRELOAD if plan.options.aligned else (*PRELOAD, "torch")
    )


def check_start(start: Start) -> None:
    """See, before anything is written, that what was asked for can be.

    Raises:
        UsageError: a device that there cannot be, or what cannot be watched.
    """
    pace = pace_of(start.ask, start.destination, start.folder)
    stages_of(start.ask, start.plan, pace)
    if start.ray:
        check_ray(start.ray, start.ask)
    if start.ask.watch:
        watched_folders(start.ask.sources)
        if start.shard and start.ask.sink == "tar":
            raise UsageError("shards that --watch have no tar files of their own; use --sink tree")


def run_batch(start: Start, *, progress: Mode, stream: TextIO) -> Ending:
    """Begin a run or go on with it, until all items have an outcome or it is interrupted.

    Args:
        start: what was given.
        progress: how it is shown.
        stream: where messages and progress go.

    Raises:
        FrDeployError: as `open_run` and `Engine.run`; the run can be resumed.
    """
    check_start(start)
    with (
        _fleet(start) as fleet,
        open_run(start, lambda text: print(text, file=stream, flush=True)) as state,
    ):
        books = open_books(state)
        orderly = False  # a photo that ends this very process is known by its beginnings
        try:
            ending = _Shift(start, state, books, stream, fleet).work(progress)
            orderly = True
        except FrDeployError:
            orderly = True
            raise
        finally:
            books.close(orderly=orderly)
        return ending


def _fleet(start: Start) -> AbstractContextManager[Fleet | None]:
    """The connection to Ray, if it carries the run out."""
    if start.ray is None:
        return nullcontext()
    from fr_deploy.batch.ray_cluster import ray_fleet

    return ray_fleet(start.ray, start.ask.devices[0])


class _Shift:
    """One start of a run, at work."""

    def __init__(
        self, start: Start, state: State, books: Books, stream: TextIO, fleet: Fleet | None = None
    ) -> None:
        self._start, self._state, self._books, self._stream = start, state, books, stream
        ask = start.ask
        pace = pace_of(ask, state.destination, books.part_folder)
        if start.ray and fleet:
            self._engine = RayEngine(fleet, start, pace, start.ray.watchdog_seconds, self._tell)
        else:
            self._engine = Engine(stages_of(ask, start.plan, pace), pace, self._tell)
        self._live = Live(books.ledger, self._engine.stats, self._total, pace.batch)
        self._pictures = Pictures(state.pictures_path) if ask.pictures else None
        self._interrupts = Interrupts(self._tell_now)
        self._watcher = (
            Watcher(start, state, self._interrupts.stop, self._tell) if ask.watch else None
        )

    def work(self, progress: Mode) -> Ending:
        """Do all there is to do."""
        state, books, live = self._state, self._books, self._live
        refusals = [Refusal(**refusal) for refusal in state.begun.refusals]
        for line in refusal_lines(refusals, len(refusals)):
            self._tell(line)
        sink = make_sink(state, books, overwrite=self._start.ask.overwrite)
        committer = Committer(books.ledger, sink, books.journal, live.add, begun=books.begun)
        with self._interrupts, Progress(progress, live.snapshot, self._stream):
            watcher = self._watcher
            try:
                if watcher:
                    watcher.start()
                self._run(committer)
            finally:
                committer.close()
                if self._pictures:
                    self._pictures.close()
        if watcher:
            watcher.join()
            if watcher.error:
                raise watcher.error
        return Ending(
            tally=live.tally,
            total=self._state.items,
            new=live.new,
            seconds=live.seconds,
            loads=live.loads(),
            restarts=sum(self._engine.stats.restarts.values()),
            refusals=refusals,
            signal=self._interrupts.number,
        )

    def _run(self, committer: Committer) -> None:
        begun = self._books.begun

        def on_done(done: Finished | Record) -> None:
            if self._pictures and isinstance(done, Finished):
                self._pictures.add(done.record.id, done.pictures)
            committer.put(done)

        self._engine.run(
            self._items(committer),
            on_done,
            on_begin=lambda item, alone: begun.begin(item.index, 1, alone),
            stop=self._interrupts.stop,
            abort=self._interrupts.abort,
        )

    def _items(self, committer: Committer) -> Iterator[tuple[Item, bool] | None]:
        """What is left of the list, but for what ended whole runs again and again."""
        begun, is_done = self._books.begun, self._books.ledger.is_done
        if self._start.ask.watch:
            items: Iterator[Item | None] = growing_items(
                self._state, self._interrupts.stop, is_done
            )
        else:
            items = self._state.read_list(skip=is_done)
        for item in items:
            if item is None:
                yield None
                continue
            verdict = begun.verdict(item.index)
            if verdict == "give_up":
                orphans = begun.orphans(item.index)
                text = f"the whole run was killed {orphans} times while this photo was in flight, at last alone"
                committer.put(failed(item, "run_killed", text, attempts=orphans))
            else:
                yield item, verdict == "alone"

    def _total(self) -> int | None:
        return None if self._start.ask.watch else self._state.items

    def _tell(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _tell_now(self, text: str) -> None:
        """From a signal handler, which may have interrupted a print to the same stream."""
        threading.Thread(target=self._tell, args=(text,), daemon=True).start()
