"""How a run is interrupted: the first signal lets it finish what is in flight, the second ends it at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

DRAIN_S = 20.0
"""How long what is in flight may take to its end after the first signal."""
_LAST_S = 3.0
"""After the second signal, until the process ends itself whatever it is at."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into events while its block runs; only in the main thread."""

    def __init__(self, tell: Callable[[str], None], *, drain: float = DRAIN_S) -> None:
        """Nothing is caught yet.

        Args:
            tell: shows a line; called from a signal handler.
            drain: seconds for what is in flight.
        """
        self.stop = threading.Event()
        """No item is begun any more."""
        self.abort = threading.Event()
        """The run ends at once."""
        self.number = 0
        """The first signal; 0: none."""
        self._tell, self._drain = tell, drain
        self._before: dict[int, Any] = {}
        self._timers: list[threading.Timer] = []

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number

    def __enter__(self) -> "Interrupts":
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for timer in self._timers:
            timer.cancel()
        if (
            not self.number
        ):  # else this process is at its end, which a second signal shall not make a traceback of
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.number:
            self.number = number
            self.stop.set()
            self._later(self._drain, self.abort.set)
            self._tell("stopping: finishing what is in flight; once more to stop at once")
        else:
            self.abort.set()
            self._later(_LAST_S, lambda: os._exit(self.exit_code))

    def _later(self, seconds: float, do: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, do)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)
