"""How far a run is: a bar on a terminal, a plain line now and then without one, or JSON each second."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, TextIO

Mode = Literal["auto", "bar", "lines", "json", "none"]
MODES: tuple[Mode, ...] = ("auto", "bar", "lines", "json", "none")
_PERIOD = {"bar": 0.25, "lines": 10.0, "json": 1.0}
WINDOW_S = 30.0
"""Speeds are of this last time: what a run did an hour ago says nothing of when it ends."""


@dataclass
class Snapshot:
    """A run at one moment."""

    seconds: float
    """Since this start."""
    total: int | None
    """Items of the list; None while it still grows."""
    done: int
    """Items with an outcome, those of earlier starts included."""
    failed: int
    in_flight: int
    """Begun and not yet committed."""
    images_per_s: float
    faces_per_s: float
    eta_s: float | None
    """Until the end at this speed; None if nobody knows."""
    batch_fill: float | None
    """Faces of the batches so far, of those they had room for; None before the first."""
    device_busy: float | None
    """Of the time since the first batch, 0 to 1."""
    bottleneck: str
    """The stage with the least time to spare."""


class Meter:
    """Speeds over the last half minute."""

    def __init__(self, window: float = WINDOW_S) -> None:
        """Begin with nothing done.

        Args:
            window: seconds.
        """
        self._window = window
        self._samples = deque([(0.0, 0, 0)])

    def rates(self, now: float, images: int, faces: int) -> tuple[float, float]:
        """Images and faces a second.

        Args:
            now: seconds since the start.
            images: done so far.
            faces: restored so far.
        """
        samples = self._samples
        samples.append((now, images, faces))
        while len(samples) > 2 and samples[1][0] <= now - self._window:
            samples.popleft()
        then, images_then, faces_then = samples[0]
        span = now - then
        if span <= 0:
            return 0.0, 0.0
        return (images - images_then) / span, (faces - faces_then) / span


class Progress:
    """Shows snapshots while a run goes on; used as a context manager around it."""

    def __init__(self, mode: Mode, look: Callable[[], Snapshot], stream: TextIO) -> None:
        """Choose how.

        Args:
            mode: `auto` is a bar on a terminal and lines elsewhere.
            look: takes a snapshot; called from a thread of its own.
            stream: where to: stderr.
        """
        if mode == "auto":
            mode = "bar" if stream.isatty() else "lines"
        self.mode, self._look, self._stream = mode, look, stream
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if self.mode != "none":
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        if self.mode == "bar":
            self._bar()
            return
        write = self._json if self.mode == "json" else self._line
        while not self._stop.wait(_PERIOD[self.mode]):
            write(self._look())
        if self.mode == "json":  # whoever reads it wants the last state, too
            write(self._look())

    def _json(self, now: Snapshot) -> None:
        values = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(now).items()}
        print(json.dumps(values | {"at": round(time.time(), 3)}), file=self._stream, flush=True)

    def _line(self, now: Snapshot) -> None:
        print(line(now), file=self._stream, flush=True)

    def _bar(self) -> None:
        # 40 ms, and only where there is a terminal.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console(file=self._stream, highlight=False)
        columns = (BarColumn(bar_width=30), TextColumn("{task.fields[text]}", markup=False))
        with Bar(*columns, console=console, transient=True, auto_refresh=False) as bar:
            now = self._look()
            task = bar.add_task("", total=now.total, completed=now.done, text=line(now))
            while True:
                ended = self._stop.wait(_PERIOD["bar"])
                now = self._look()
                bar.update(task, total=now.total, completed=now.done, text=line(now), refresh=True)
                if ended:
                    return


def line(now: Snapshot) -> str:
    """A snapshot as one line of text."""
    of = f"/{now.total}" if now.total is not None else ""
    parts = [f"{now.done}{of}"]
    parts += [f"{now.failed} failed"] if now.failed else []
    parts.append(f"{now.images_per_s:.1f} images/s")
    parts.append(f"{now.faces_per_s:.1f} faces/s")
    parts += [f"{span(now.eta_s)} left"] if now.eta_s is not None else []
    parts += [f"batches {now.batch_fill:.0%} full"] if now.batch_fill is not None else []
    parts += [f"device {now.device_busy:.0%} busy"] if now.device_busy is not None else []
    parts += [f"waiting for {now.bottleneck}"] if now.bottleneck else []
    return ", ".join(parts)


def span(seconds: float) -> str:
    """A time as people read it: `42 s`, `3:05 min`, `1:02:03 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{hours}:{rest // 60:02}:{rest % 60:02} h"
    return f"{rest // 60}:{rest % 60:02} min"
