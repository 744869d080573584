"""A folder into which photos are put while it is watched."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from fr_deploy.batch.compact import CompactSet
from fr_deploy.batch.finder import ARCHIVES_FOUND, Finder
from fr_deploy.batch.item import Item, item_id
from fr_deploy.batch.listing import itemize
from fr_deploy.batch.names import Naming, Notes
from fr_deploy.errors import UsageError
from fr_deploy.inputs import Inputs, find_below


@dataclass
class Known:
    """What was listed before: nothing of it is given again, nor is its output."""

    ids: CompactSet = field(default_factory=CompactSet)
    outputs: CompactSet = field(default_factory=CompactSet)
    next_index: int = 0

    def add(self, item: Item) -> None:
        """Take in an item of the list."""
        self.ids.add(item.id)
        self.outputs.add(item.output)
        self.next_index = max(self.next_index, item.index + 1)


def watch_items(
    folder: Path,
    known: Known,
    stable_seconds: float,
    *,
    outside: Path | None = None,
    naming: Naming | None = None,
    notes: Notes | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Item]]:
    """Look into a folder again and again, once for each `next()`; who calls waits between the looks.

    A photo is given once its size and time of change have been the same in two looks that are at least
    `stable_seconds` apart. Names are those that `list_items` would give; hidden files, and suffixes that are no photo's
    (`.part`, `.tmp`, `.crdownload`), are left out. A tar or zip file gives its members once it is stable.

    Args:
        folder: searched to the bottom.
        known: what was listed before; items that are given are added.
        stable_seconds: how long a file must rest.
        outside: the destination.
        naming: how outputs are called.
        notes: takes what is refused, once for each file: also outputs that are taken (reason `collision`).
        clock: seconds.

    Returns:
        What became stable, maybe nothing, at each look.

    Raises:
        UsageError: `outside` is or holds the watched folder: outputs could be taken for inputs, or replace them.
    """
    if outside is not None and folder.resolve().is_relative_to(outside.resolve()):
        raise UsageError(
            f"{folder} is watched and lies in the destination {outside}; name another destination"
        )
    avoid = frozenset([outside.resolve()] if outside else [])
    watcher = _Watcher(known, Finder(avoid, allow_http=False), naming or Naming())
    if notes is not None:
        watcher.finder.notes = notes
    root = Path(os.path.abspath(folder))
    return (watcher.look(root, avoid, clock(), stable_seconds) for _ in count())


@dataclass
class _Watcher:
    known: Known
    finder: Finder
    naming: Naming
    resting: dict[str, tuple[int, int, float]] = field(
        default_factory=dict[str, tuple[int, int, float]]
    )
    """Size, time of change, and when it was first seen so, of what is not known yet."""
    settled: set[str] = field(default_factory=set[str])
    """What is no item by itself: archives that were opened, and what was refused."""

    def look(
        self, folder: Path, avoid: frozenset[Path], now: float, stable_seconds: float
    ) -> list[Item]:
        inputs = Inputs()
        items: list[Item] = []
        resting, self.resting = self.resting, {}
        for source in find_below(inputs, folder, avoid, ARCHIVES_FOUND):
            path, name = str(source.path), str(source.relative)
            if name in self.settled or item_id(name) in self.known.ids:
                continue
            state = self._state(path, name)
            if state is None:
                continue
            *before, since = resting.get(name, (*state, now))
            since = since if state == tuple(before) else now
            if now - since >= stable_seconds and name in resting:
                items += self._settle(path, name)
            else:
                self.resting[name] = (*state, since)
        for refusal in inputs.refusals:
            self._refuse(refusal.name, refusal.reason, refusal.message)
        return items

    def _state(self, path: str, name: str) -> tuple[int, int] | None:
        try:
            status = os.stat(path)
        except OSError:
            return None  # gone again, or a link to what is still to come
        if not stat.S_ISREG(status.st_mode):
            self._refuse(name, "unreadable", "is not a regular file")
            return None
        return status.st_size, status.st_mtime_ns

    def _settle(self, path: str, name: str) -> list[Item]:
        items: list[Item] = []
        for found in self.finder.at(path, name):
            if found.member is not None:
                self.settled.add(name)
            item = itemize(found, self.known.next_index, self.naming, self.finder.notes)
            if item is None:
                self.settled.add(name)
            elif item.id in self.known.ids:
                continue
            elif item.output in self.known.outputs:
                self.settled.add(name)
                text = f"its output {item.output} is that of another one"
                self.finder.notes.refuse(found.name, "collision", text)
            else:
                self.known.add(item)
                items.append(item)
        if not items:
            self.settled.add(name)  # an archive without photos, or one of another kind
        return items

    def _refuse(self, name: str, reason: str, message: str) -> None:
        if name not in self.settled:
            self.settled.add(name)
            self.finder.notes.refuse(name, reason, message)
