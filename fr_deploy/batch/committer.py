"""Makes outcomes durable, many at a time, in a thread of its own."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from fr_deploy.batch.begun import Begun
from fr_deploy.batch.item import Record
from fr_deploy.batch.journal import Entry, Journal
from fr_deploy.batch.ledger import Ledger
from fr_deploy.batch.lines import encode_line
from fr_deploy.batch.sinks import Sink
from fr_deploy.batch.work import Finished

GROUP = 64
"""Records of one commit, at most."""
GATHER_SECONDS = 0.05
"""How long the first record of a group waits for others, while commits follow each other."""
WAITING = 32
"""Items that wait for a commit, at most: a kill makes them run again, and fewer would hold up the engine."""


class Committer:
    """Takes finished items from any thread; the order of a commit is that of `fr_deploy.batch.journal`.

    Whatever ends its thread (a full disk, say) is kept in `error`, and raised by the next call.
    """

    def __init__(
        self,
        ledger: Ledger,
        sink: Sink,
        journal: Journal,
        on_committed: Callable[[list[Record]], None],
        *,
        begun: Begun | None = None,
        group: int = GROUP,
        gather_seconds: float = GATHER_SECONDS,
        waiting: int = WAITING,
    ) -> None:
        """Start the thread.

        Args:
            ledger: gets the outcomes.
            sink: takes the outputs.
            journal: of the same state.
            on_committed: called in the thread with the outcomes of each commit, when they are durable.
            begun: told which items are no longer in flight while a sink holds their outcomes.
            group: outcomes of one commit, at most.
            gather_seconds: how long a group's first outcome waits for others, unless there was no commit as long.
            waiting: items that wait for a commit, at most; `put` waits then.
        """
        self.error: BaseException | None = None
        self._ledger, self._sink, self._journal = ledger, sink, journal
        self._on_committed, self._begun = on_committed, begun
        self._group, self._gather_seconds = group, gather_seconds
        self._queue: queue.Queue[Finished | threading.Event] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._host = socket.gethostname()
        self._last = 0.0
        self._thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self._thread.start()

    def put(self, done: Finished | Record) -> None:
        """Hand over an item that is finished, or failed; waits while 32 are waiting.

        Raises:
            ResourceError: the disk is full, or cannot be written. Other errors of the thread, likewise.
        """
        self._put(done if isinstance(done, Finished) else Finished(done, []))

    def flush(self) -> None:
        """Return when all that was put is durable; closes an open tar shard.

        Raises:
            ResourceError: as `put`.
        """
        event = threading.Event()
        self._put(event)
        while not event.wait(0.1):
            self._check()
        self._check()

    def close(self) -> None:
        """Make all that was put durable, and end the thread; twice is once.

        Raises:
            ResourceError: as `put`.
        """
        try:
            if not self._closing.is_set():
                self.flush()
        finally:
            self._closing.set()
            self._thread.join()
        self._check()

    def _put(self, what: Finished | threading.Event) -> None:
        while True:
            self._check()
            with suppress(queue.Full):
                self._queue.put(what, timeout=0.2)
                return

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                group, event = self._gather()
                self._take(group)
                if event:
                    self._commit(self._sink.flush(), [])
                    event.set()
        except BaseException as error:  # whatever it is, it ends the run
            self.error = error

    def _gather(self) -> tuple[list[Finished], threading.Event | None]:
        group: list[Finished] = []
        until = 0.0
        while len(group) < self._group:
            try:
                wait = until - time.monotonic() if group else 0.1
                what = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(what, threading.Event):
                return group, what
            group.append(what)
            if len(group) == 1:
                # Alone after a pause: nobody follows for whom waiting would pay.
                now = time.monotonic()
                busy = now - self._last < self._gather_seconds
                until = now + self._gather_seconds if busy else now
        return group, None

    def _take(self, group: Sequence[Finished]) -> None:
        ready: list[Entry] = []
        for done in group:
            ready += self._sink.add(_writable(done))
        if self._begun is not None and self._sink.holds:
            self._begun.returned(done.record.index for done in group)
        self._commit(ready, [part for done in group for part in done.parts])

    def _commit(self, entries: Sequence[Entry], parts: Sequence[str]) -> None:
        if not entries:
            return
        now = time.time()
        for entry in entries:
            entry.records = [replace(r, at=now, host=self._host) for r in entry.records]
        if any(entry.moves for entry in entries):
            self._journal.write([entry for entry in entries if entry.moves])
        records = [record for entry in entries for record in self._sink.place(entry)]
        self._sink.sync()
        self._ledger.append(records)
        for part in parts:  # renamed by now, but for those of items that came to nothing
            with suppress(FileNotFoundError):
                os.unlink(part)
        self._last = time.monotonic()
        self._on_committed(records)


def _writable(done: Finished) -> Finished:
    """The item; `failed` if its record is no JSON, which would otherwise be the end of the run."""
    try:
        encode_line(done.record.to_json())
    except (TypeError, ValueError) as error:
        record = done.record
        bare = Record(record.index, record.id, record.name, "failed", "unexpected")
        return Finished(replace(bare, message=f"its record cannot be written: {error}"), [])
    return done
