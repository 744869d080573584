"""Small stages for the engine's tests: an item's name says what becomes of it.

`<what>-<faces>-<number>`, where <what> is `ok`, or a fault and where it happens: `abort`, `segv`, `exit`, `hang`,
`bad`, `boom` or `full`, each with `.prepare`, `.device` or `.finish`. Every process that takes another one's place
imports this module, so it imports little.
"""

import ctypes
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.work import Faces, Finish, Finished, Prepared, Restored
from fr_deploy.errors import ImageError, ModelError

SIDE = 160
"""A crop of 77 kB: just enough to travel in a memfd."""
_DEADLY = ["abort", "segv", "exit", "hang", "bad", "boom", "full"]


def item(index: int, what: str = "ok", faces: int = 1) -> Item:
    name = f"{what}-{faces}-{index}"
    return Item(index, name, name, name)


def crops_of(index: int, faces: int) -> NDArray[np.uint8]:
    values = (index * 7 + np.arange(faces)) % 200
    crops = np.empty((faces, SIDE, SIDE, 3), np.uint8)
    crops[:] = values[:, None, None, None]
    return crops


def fault(what: str) -> None:
    """Do it."""
    if what == "abort":
        os.abort()
    elif what == "segv":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(3)
    elif what == "hang":
        while True:
            time.sleep(60)
    elif what == "bad":
        raise ImageError("corrupt", "this one is bad")
    elif what == "boom":
        raise ZeroDivisionError("boom")
    elif what == "full":
        raise OSError(28, "No space left on device")


@dataclass
class ToyPrepare:
    seconds: float = 0.0
    set_up_fails: str = ""
    counts: Path | None = None
    """A file that each set-up adds a line to; with `hits`, a folder."""
    hits: dict[int, int] = field(default_factory=dict[int, int])
    """Photos over which its process is killed so many times, as from outside."""

    def setup(self) -> None:
        if self.counts is not None and not self.hits:
            with self.counts.open("a") as file:
                file.write(f"{os.getpid()}\n")
        if self.set_up_fails == "model":
            raise ModelError("no such model")
        if self.set_up_fails:
            fault(self.set_up_fails)

    def __call__(self, task: Item) -> Prepared | Record:
        time.sleep(self.seconds)
        if task.index in self.hits:
            self.hit(task.index)
        what, faces, _ = task.name.split("-")
        where = what.partition(".")
        if where[2] == "prepare":
            fault(where[0])
        crops = crops_of(task.index, int(faces))
        if where[2] == "device" and len(crops):
            crops[-1, 0, 0, 0] = 201 + _DEADLY.index(where[0])
        photo: Any = np.full((50, 500, 3), task.index % 256, np.uint8)  # stands for a Photo
        return Prepared(task, "00", photo, [], [], crops)

    def hit(self, index: int) -> None:
        assert self.counts is not None
        with (self.counts / str(index)).open("ab") as file:
            if file.tell() < self.hits[index]:
                file.write(b"x")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class ToyRefuse:
    """Ends every photo itself."""

    def setup(self) -> None:
        pass

    def __call__(self, task: Item) -> Record:
        return Record(task.index, task.id, task.name, "failed", "changed", in_sha256="ab")


@dataclass
class ToyDevice:
    base: float = 0.0
    per_face: float = 0.0
    sizes: Path | None = None

    def setup(self) -> None:
        pass

    def __call__(self, task: Faces) -> Restored:
        if self.sizes is not None:
            with self.sizes.open("a") as file:
                file.write(f"{len(task.crops)}\n")
        time.sleep(self.base + self.per_face * len(task.crops))
        for value in task.crops[:, 0, 0, 0]:
            if value > 200:
                fault(_DEADLY[value - 201])
        angles = [float(value) for value in task.crops[:, 1, 1, 1]]
        return Restored(255 - task.crops, angles, ms=1.0)


@dataclass
class ToyFinish:
    seconds: float = 0.0

    def setup(self) -> None:
        pass

    def __call__(self, task: Finish) -> Finished | Record:
        time.sleep(self.seconds)
        item = task.prepared.item
        what, faces, _ = item.name.split("-")
        where = what.partition(".")
        if where[2] == "finish":
            fault(where[0])
        photo: Any = task.prepared.photo
        crops = crops_of(item.index, int(faces))
        assert np.array_equal(task.prepared.crops, crops)
        assert len(task.restored.crops) == len(crops)
        assert not len(crops) or np.array_equal(task.restored.crops, 255 - crops)
        assert int(photo.mean()) == item.index % 256
        photo[:] = 0  # arrays are ours to change
        task.prepared.crops[:] = 0
        angles = [float(value) for value in crops[:, 1, 1, 1]]
        assert task.restored.angles == (angles if len(crops) else None)
        status = "restored" if len(crops) else "no_face"
        record = Record(item.index, item.id, item.name, status, in_sha256=task.prepared.in_sha256)
        record.faces = [{"angle": np.float64(angle)} for angle in angles]
        return Finished(record, [], [(bytes(70_000), b"")])
