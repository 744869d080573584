"""Items, records and parts for tests of a batch run's state on disk."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr_deploy.batch.item import Item, Output, Record
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.runfile import Run
from fr_deploy.batch.state import State
from fr_deploy.batch.work import Finished
from fr_deploy.errors import ResourceError

if TYPE_CHECKING:  # half a second of each process that tests start
    import pytest

MODEL = {"unet": "a" * 64, "detector": "b" * 64}


def item(index: int, name: str | None = None) -> Item:
    name = name or f"folder-{index % 3}/photo-{index}.jpg"
    return Item(index, name, f"/photos/{name}", name.removesuffix(".jpg") + ".png")


def record(index: int, **more: Any) -> Record:
    it = item(index)
    values: dict[str, Any] = {"status": "no_face", **more}
    return Record(index, it.id, it.name, **values)


def content(index: int) -> bytes:
    """The output of an item: the same at each attempt, of 0 to 4 kB."""
    return hashlib.sha256(str(index).encode()).digest() * (index % 128)


def finished(parts: Path, index: int, *paths: str, data: bytes | None = None) -> Finished:
    """A finished item, its parts written; its output's own path by default."""
    data = content(index) if data is None else data
    outputs: list[Output] = []
    names: list[str] = []
    for number, path in enumerate(paths or [item(index).output]):
        part = parts / f"{os.getpid()}-{index}-{number}.part"
        part.write_bytes(data)
        names.append(str(part))
        outputs.append(Output(path, len(data), hashlib.sha256(data).hexdigest()))
    return Finished(record(index, status="restored", outputs=outputs), names)


def begin(
    destination: Path, count: int, *, shard: tuple[int, int] | None = None, **more: Any
) -> State:
    """A state with a list of `count` items, its run begun."""
    from fr_deploy.batch.folder import state_folder

    state = State(state_folder(destination, shard))
    try:
        state.write_list((item(i) for i in range(count)), shard=shard)
        state.create(Plan(), MODEL, sources=["photos"], destination=destination, **more)
    except BaseException:
        state.close()
        raise
    return state


def run_of(state: State) -> Run:
    assert state.run
    return state.run


def error_of(action: Callable[[], None]) -> ResourceError | None:
    try:
        action()
    except ResourceError as error:
        return error
    return None


class Disk:
    """Counts what is written and synced, and can be full from one call on."""

    def __init__(self, monkeypatch: "pytest.MonkeyPatch") -> None:
        self.writes = 0
        self.syncs = 0
        self.fail_at: int | None = None
        self.short = 0
        """Bytes that the failing write still takes."""
        self.error = OSError(28, "No space left on device")
        self.full = False
        self._pwrite, self._fsync = os.pwrite, os.fsync
        monkeypatch.setattr(os, "pwrite", self._on_write)
        monkeypatch.setattr(os, "fsync", self._on_sync)

    def _fails(self) -> bool:
        if self.fail_at is not None and self.writes + self.syncs > self.fail_at:
            self.full = True
        return self.full

    def _on_write(self, fd: int, data: bytes, offset: int) -> int:
        self.writes += 1
        was_full = self.full
        if self._fails():
            if self.short and not was_full:
                return self._pwrite(fd, bytes(data)[: self.short], offset)
            raise self.error
        return self._pwrite(fd, data, offset)

    def _on_sync(self, fd: int) -> None:
        self.syncs += 1
        if self._fails():
            raise self.error
        self._fsync(fd)


def start(code: str, *arguments: object) -> "subprocess.Popen[bytes]":
    """A Python process with the tests' folder on its path."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=env)


def run_to_end(code: str, *arguments: object) -> str:
    process = start(code, *arguments)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.decode()
