"""The build's process, seen from outside: its events, its end, and what its death means."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from fr_deploy.errors import ModelError, ResourceError
from fr_export.engine_calls import Job

WORKER = "fr_export.engine_worker"
_LINES = 12
"""Of TensorRT's log, in an error message."""


@dataclass(frozen=True)
class Step:
    """How far one phase of a build is. Phases nest."""

    phase: str
    parent: str | None
    done: int
    steps: int
    """0 < steps; the phase is over where `done` equals it."""
    seconds: float
    """Since the build began."""
    peak_bytes: int
    """Most main memory of the build's process so far."""


@dataclass
class _Heard:
    """What the process has said so far."""

    what: str
    progress: Callable[[Step], None] | None
    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, tuple[str | None, int]] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    peak: int = 0
    end: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """One event of `engine_worker`."""
        self.peak = event["peak"]
        match event["event"]:
            case "log":
                self.log.append(f"{event['severity']}: {event['text']}")
            case "start":
                self.phases[event["phase"]] = (event["parent"], max(1, event["steps"]))
                self._report(event["phase"], 0)
            case "step":
                self._report(event["phase"], event["step"] + 1)
            case "finish":
                self._report(event["phase"], None)
            case _:
                self.end = event

    def _report(self, phase: str, done: int | None) -> None:
        if self.progress is not None and phase in self.phases:
            parent, steps = self.phases[phase]
            seconds = time.perf_counter() - self.began
            done = steps if done is None else min(done, steps)
            self.progress(Step(phase, parent, done, steps, seconds, self.peak))


def run_job(
    job: Job, plan_fd: int, what: str, progress: Callable[[Step], None] | None
) -> dict[str, Any]:
    """Run a build to its end.

    Args:
        job: what to build.
        plan_fd: an open file the engine is written to.
        what: is built, for messages.
        progress: called with each step.

    Returns:
        The worker's last event: version, layers, bytes, sha256, peak, information.

    Raises:
        ModelError: the graph is refused, or the process died.
        ResourceError: it was killed, as a process without memory is.
        OSError: the engine could not be written.
    """
    heard = _Heard(what, progress)
    with tempfile.TemporaryFile("w+") as said:
        code = _run(job, plan_fd, said, heard)
        said.seek(0)
        tail = said.read().splitlines()[-_LINES:]
    end = heard.end
    if end is None:
        raise _death(heard, code, tail)
    if end["event"] == "failed":
        if end["errno"] is not None:
            raise OSError(end["errno"], os.strerror(end["errno"]))
        log = [] if end["complete"] else heard.log[-_LINES:]
        raise ModelError("\n".join((f"{what}: {end['text']}", *log)))
    return end


def _run(job: Job, plan_fd: int, said: IO[str], heard: _Heard) -> int:
    """The process's exit code."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", WORKER, json.dumps(asdict(job)), str(writing), str(plan_fd)]
    with os.fdopen(reading) as events:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=(writing, plan_fd),
            )
        finally:
            os.close(writing)
        try:
            for event in _events(events):
                heard.take(event)
            return process.wait()
        finally:
            process.kill()
            process.wait()


def _events(lines: IO[str]) -> Iterator[dict[str, Any]]:
    """A process that dies in the midst of a line leaves half of one."""
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)


def _death(heard: _Heard, code: int, tail: list[str]) -> Exception:
    """What the end of a process that said nothing of it means."""
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    lines = "\n".join((*heard.log[-_LINES:], *tail))
    if code == -signal.SIGKILL:
        return ResourceError(
            f"{heard.what}: the build was killed, as a process is that takes all memory; it had taken "
            f"{heard.peak / 1e9:.1f} GB. Build on a machine with more, or fewer things at a time\n{lines}".strip()
        )
    return ModelError(
        f"{heard.what}: TensorRT crashed ({name}) and wrote no engine\n{lines}".strip()
    )
