"""What was begun: tells an item that takes the whole run down from those that were only near it.

Each item is noted in `begun.jsonl` before it is begun, by a plain write: the note outlives the process, and a power
cut blames nobody. The last beginning of an item in a run that was killed, with no outcome, is an orphan. An item with
3 orphans is run alone, with nothing else in flight; one with 3 orphans from being alone is given up.

But whoever kills runs from outside hits innocents, alone ones too. If an item that was an orphan while alone succeeded
later, runs are being killed from outside, and 10 orphans while alone are needed.

Lines: `{"begun": [index, attempt, alone, run]}`; `{"returned": [index, ...]}`: no longer in flight, although the
outcome may wait for its tar shard; `{"ended": run}`: the run ended in order, so nothing of it is an orphan. At each
opening, and beyond 64 MiB, the file is rewritten with `{"runs": n, "outside": bool}` and one
`{"orphan": [index, orphans, alone]}` for each item without outcome.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from fr_deploy.batch.durable import AppendFile, replace_durably
from fr_deploy.batch.ledger import Tally
from fr_deploy.batch.lines import encode_line, read_lines
from fr_deploy.errors import ResourceError

Verdict = Literal["run", "alone", "give_up"]
ORPHANS = 3
"""As many, and an item is run alone; as many while alone, and it is given up."""
ORPHANS_OUTSIDE = 10
"""The same while alone, where runs are known to be killed from outside."""
COMPACT_BYTES = 64 * 2**20
_PRUNE = 4096


class Begun:
    """`begun.jsonl`, open for one run. Its methods may be called from any thread."""

    def __init__(self, path: Path, tally: Tally, *, compact_bytes: int = COMPACT_BYTES) -> None:
        """Read what earlier runs left, and begin a new run.

        Args:
            path: the file; made if missing.
            tally: of the ledger; kept, to know which items have an outcome by now.
            compact_bytes: the file's size at which it is rewritten.

        Raises:
            ResourceError: it cannot be written.
        """
        self._path, self._tally, self._limit = path, tally, compact_bytes
        self._lock = Lock()
        self._orphans: dict[int, tuple[int, int]] = {}
        self._current: dict[int, tuple[int, bool]] = {}
        self._runs = 0
        self.outside = False
        """Runs are known to be killed from outside."""
        self._prune_at = _PRUNE
        self._read()
        self._runs += 1
        self._file = self._rewritten()

    def begin(self, index: int, attempt: int, alone: bool) -> None:
        """Note that an item is about to be begun.

        Args:
            index: the item's.
            attempt: how often it is begun in this run, from 1.
            alone: nothing else is in flight.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        with self._lock:
            self._append({"begun": [index, attempt, alone, self._runs]})
            self._current[index] = attempt, alone
            if len(self._current) > self._prune_at:
                self._prune()
            if self._file.size > self._limit:
                self._file.close()
                self._file = self._rewritten()

    def returned(self, indexes: Iterable[int]) -> None:
        """Note that items are no longer in flight; if the run is killed now, they are no orphans.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        with self._lock:
            known = [index for index in indexes if self._current.pop(index, None)]
            if known:
                self._append({"returned": known})

    def verdict(self, index: int) -> Verdict:
        """How an item is to be run, from what became of earlier runs."""
        orphans, alone = self._orphans.get(index, (0, 0))
        if alone >= (ORPHANS_OUTSIDE if self.outside else ORPHANS):
            return "give_up"
        return "alone" if orphans >= ORPHANS else "run"

    def orphans(self, index: int) -> int:
        """How many earlier runs were killed while this item was in flight."""
        return self._orphans.get(index, (0, 0))[0]

    @property
    def suspects(self) -> int:
        """How many items without outcome were orphans of earlier runs."""
        return len(self._orphans)

    def close(self, *, orderly: bool = True) -> None:
        """End the run; twice is once. On a full disk its items in flight count as orphans after all.

        Args:
            orderly: it ends as it should (done, interrupted, disk full), so items in flight are not to blame.
        """
        with self._lock:
            if orderly and not self._file.closed:
                with suppress(ResourceError):
                    self._append({"ended": self._runs})
            self._file.close()

    def _append(self, value: dict[str, Any]) -> None:
        self._file.append(encode_line(value), sync=False)

    def _prune(self) -> None:
        self._current = {i: how for i, how in self._current.items() if i not in self._tally.done}
        self._prune_at = max(_PRUNE, 2 * len(self._current))

    def _read(self) -> None:
        done, failed = self._tally.done, self._tally.failed
        for line in read_lines(self._path):
            match line.value:
                case {"runs": int(runs), "outside": bool(outside)}:
                    self._runs, self.outside = runs, outside
                case {"orphan": [int(index), int(orphans), int(alone)]}:
                    if index not in done:
                        self._orphans[index] = orphans, alone
                    elif alone and index not in failed:
                        self.outside = True
                case {"begun": [int(index), int(attempt), bool(alone), int()]}:
                    if index not in done:
                        self._current[index] = attempt, alone
                case {"returned": list(indexes)}:
                    for index in indexes:
                        self._current.pop(index, None)
                case {"ended": int()}:
                    self._current.clear()
                case _:
                    pass  # torn, or damaged: one beginning that blames nobody
        for index, (_, alone) in self._current.items():
            orphans, were_alone = self._orphans.get(index, (0, 0))
            self._orphans[index] = orphans + 1, were_alone + alone
        self._current.clear()

    def _rewritten(self) -> AppendFile:
        replace_durably(self._path, self._lines())
        return AppendFile(self._path)

    def _lines(self) -> Iterator[bytes]:
        yield encode_line({"runs": self._runs, "outside": self.outside})
        for index, (orphans, alone) in self._orphans.items():
            if index not in self._tally.done:
                yield encode_line({"orphan": [index, orphans, alone]})
        self._prune()
        for index, (attempt, alone) in self._current.items():
            yield encode_line({"begun": [index, attempt, alone, self._runs]})
