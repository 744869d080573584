"""Process groups that are started to be killed, and all processes below one."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from fr_deploy.errors import FrDeployError

PATIENCE_S = 120.0


class Group:
    """A command in a session of its own; whatever is left of it is killed at the end."""

    def __init__(self, command: Sequence[str], **more: Any) -> None:
        """Start it.

        Args:
            command: its words.
            more: of `subprocess.Popen`; by default stdout and stderr are read as text.
        """
        given: dict[str, Any] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        } | more
        self.process = subprocess.Popen(command, start_new_session=True, **given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self.process.communicate()

    def kill(self) -> None:
        """SIGKILL to every process of the group, and wait until they are gone.

        Raises:
            FrDeployError: they stay.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        until_gone(members(self.process.pid))


def members(group: int) -> list[int]:
    """The processes of a group that are no zombies."""
    return [pid for pid, fields in _processes() if int(fields[2]) == group]


def family(pid: int) -> dict[int, str]:
    """A process and all below it that live: what they are called."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for each, fields in _processes():
        parents.setdefault(int(fields[1]), []).append(each)
        with contextlib.suppress(OSError, ValueError):
            names[each] = Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ").strip()
    return {each: names[each] for each in _below(pid, parents) if each in names}


def until_gone(pids: Sequence[int]) -> float:
    """Seconds until processes have ended.

    Raises:
        FrDeployError: they stay.
    """
    began = time.monotonic()
    while left := [pid for pid in pids if _fields(pid) is not None]:
        if time.monotonic() - began > PATIENCE_S:
            raise FrDeployError(f"processes are left {PATIENCE_S:g} s after the kill: {left}")
        time.sleep(0.02)
    return time.monotonic() - began


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))) is not None:
            yield int(entry.name), fields


def _fields(pid: int) -> list[str] | None:
    """Of a process: state, parent, group and more; None if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if fields and fields[0] != "Z" else None


def _below(pid: int, parents: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in parents.get(pid, []):
        yield from _below(child, parents)
