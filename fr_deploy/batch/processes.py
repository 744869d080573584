"""One child as its parent sees it: started by a fork server, spoken to through a socketpair, ended by SIGKILL."""

import multiprocessing
import multiprocessing.resource_tracker
import signal
import socket
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fr_deploy.batch.channel import Channel, GarbledError
from fr_deploy.batch.child import Start, child_main
from fr_deploy.batch.stage import Role
from fr_deploy.errors import ResourceError

DEPTH = 2
"""Tasks a child has at most: one at work and one ahead, so that it need not wait for the parent."""
PRELOAD = ("fr_deploy.batch.child", "fr_deploy.batch.work")
"""Imported once by the fork server: a child then starts in 15 ms, where an interpreter and numpy take 200."""
_EXIT_SECONDS = 2.0
_START_TRIES = 3
_START_PAUSE_SECONDS = 0.2
_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Child:
    """A process that runs one stage.

    Args:
        start: what it runs.
        number: its place among those of its role, from 0.
        preload: more modules for the fork server, if it is not there yet.
    """

    def __init__(self, start: Start, number: int, preload: tuple[str, ...] = ()) -> None:
        self.role: Role = start.role
        self.number = number
        self._code: int | None = None
        self.ready = False
        self.jobs: deque[Any] = deque()
        """What its tasks are about; the first one is at work."""
        self.since = time.monotonic()
        """When it began its set-up or its present task."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = _start(start, theirs, (*PRELOAD, *preload))
        self.channel = Channel(ours, wary=True)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid or 0

    def give(self, job: Any, task: Any) -> bool:
        """Send a task.

        Returns:
            False if the child is gone: its end will be read from its channel.
        """
        try:
            self.channel.send(task)
        except OSError:
            return False
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append(job)
        return True

    def hear(self) -> Iterator[Any]:
        """The messages that have come.

        Raises:
            EOFError: after the last one of a child that has ended.
            GarbledError: what came is no message.
        """
        while True:
            try:
                yield self.channel.receive(wait=False)
            except BlockingIOError:
                return

    def answered(self) -> Any:
        """The job whose result has come; the next one is at work from now on.

        Raises:
            GarbledError: it had none.
        """
        if not self.jobs:
            raise GarbledError("a result without a task")
        self.since = time.monotonic()
        return self.jobs.popleft()

    def end(self) -> int:
        """End it if it has not ended, and wait for that.

        Returns:
            Its exit code; negative: the signal that ended it.
        """
        if self._code is not None:
            return self._code
        self.channel.close()
        code: int | None = self._process.exitcode
        self._process.kill()
        self._process.join(_EXIT_SECONDS)
        code = self._process.exitcode if code is None else code
        self._code = -signal.SIGKILL if code is None else code
        with suppress(ValueError):  # the kernel has not let it go yet
            self._process.close()
        return self._code

    def ended(self) -> int:
        """The same for a child whose end of the channel is closed: its own exit code comes in a moment."""
        self._process.join(_EXIT_SECONDS)
        return self.end()


def _start(start: Start, theirs: socket.socket, preload: tuple[str, ...]) -> Any:
    """A process of the fork server, which is started if it is not there.

    Raises:
        ResourceError: the system lets no more processes start.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    for left in reversed(range(_START_TRIES)):
        process = context.Process(target=child_main, args=(theirs, start), daemon=True)
        try:
            with _signals_held_back():
                process.start()
            return process
        except (OSError, EOFError) as error:  # also if the server ended this very moment
            if not left:
                text = f"no {start.role} process can be started ({error!r}): use fewer processes"
                raise ResourceError(text) from error
            time.sleep(_START_PAUSE_SECONDS)
    raise AssertionError


@contextmanager
def _signals_held_back() -> Generator[None]:
    """Start the fork server with the run's signals blocked, as its children then are.

    They reach a process group as a whole, but the server would end by SIGTERM, and a new child by SIGINT.
    """
    # It unblocks them when it starts; so it must be there before.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
