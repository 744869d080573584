"""`--watch`: new photos in the sources are added to a run's list while the run goes on."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import shard_of
from fr_deploy.batch.names import Naming, Notes
from fr_deploy.batch.opening import Start, refusal_line, spare_of
from fr_deploy.batch.state import State
from fr_deploy.batch.watch import Known, watch_items
from fr_deploy.errors import UsageError

PERIOD_S = 1.0
"""Between two looks at the sources."""
STABLE_S = 2.0
"""A file that did not change for so long is whole."""


class Watcher:
    """Looks into folders again and again, in a thread of its own.

    What a name stands for is taken once: a file that is changed later is not done again.
    """

    def __init__(
        self, start: Start, state: State, stop: threading.Event, tell: Callable[[str], None]
    ) -> None:
        """Know what the list has already.

        Args:
            start: its sources are folders.
            state: of the run; its list grows.
            stop: ends the watch; set by the watcher itself if it fails.
            tell: shows a line.

        Raises:
            UsageError: as `watched_folders`.
        """
        self.error: Exception | None = None
        self._state, self._stop, self._tell, self._shard = state, stop, tell, start.shard
        self._notes, self._told = Notes(), 0
        known = Known()
        for item in state.read_list():
            known.add(item)
        plan = start.plan
        naming = Naming(plan.ext, plan.suffix, spare_of(start))
        outside = start.destination
        self._looks = [
            watch_items(folder, known, STABLE_S, outside=outside, naming=naming, notes=self._notes)
            for folder in watched_folders(start.ask.sources)
        ]
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the last look, after `stop`."""
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                for look in self._looks:
                    self._add(next(look))
                self._tell_refusals()
                # A look at a million files takes seconds; it shall not take a whole core.
                self._stop.wait(max(PERIOD_S, time.monotonic() - began))
        except Exception as error:
            self.error = error
            self._stop.set()

    def _add(self, items: Sequence[Item]) -> None:
        shard = self._shard
        mine = [item for item in items if shard is None or shard_of(item.id, shard[1]) == shard[0]]
        first = self._state.items
        self._state.append_items(
            [replace(item, index=first + place) for place, item in enumerate(mine)]
        )

    def _tell_refusals(self) -> None:
        for refusal in self._notes.refusals[self._told :]:
            self._tell(refusal_line(refusal))
        self._told = len(self._notes.refusals)


def growing_items(
    state: State, stop: threading.Event, skip: Callable[[int], bool]
) -> Iterator[Item | None]:
    """The items of a list that grows, in order; None when there is none at this time; ends with `stop`."""
    at = 0
    while True:
        ended, count = stop.is_set(), state.items
        if count > at:
            for item in state.read_list(at, skip=skip):
                at = item.index + 1
                yield item
            at = max(at, count)
        elif ended:
            return
        else:
            yield None


def watched_folders(sources: Sequence[str]) -> list[Path]:
    """The sources as folders.

    Raises:
        UsageError: one is none.
    """
    for source in sources:
        if not os.path.isdir(source):
            raise UsageError(f"--watch looks into folders, and {source} is none")
    return [Path(source) for source in sources]
