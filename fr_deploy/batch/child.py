"""What runs in a child: one stage, set up once, then one task after the other."""

import copy
import ctypes
import errno
import multiprocessing.forkserver
import os
import pickle
import resource
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from fr_deploy.batch.channel import Channel, Parcel
from fr_deploy.batch.device_child import serve_device
from fr_deploy.batch.messages import (
    Fault,
    FinishTask,
    PreparedParcels,
    PrepareTask,
    Ready,
    Reply,
)
from fr_deploy.batch.stage import Role
from fr_deploy.batch.work import Finish, nothing_restored
from fr_deploy.errors import FrDeployError, ImageError

_PR_SET_PDEATHSIG = 1
_NO_CORE = 1
"""As RLIMIT_CORE: the kernel then pipes no dump to a handler either, which it does at 0."""
_OOM_SCORE = 500
"""When memory runs out the kernel ends a child, whose photo is tried again, and not the run."""


@dataclass(frozen=True)
class Start:
    """How a child begins."""

    role: Role
    stage: bytes
    """The pickled stage."""
    address_space: int | None = None
    """Bytes; None: no limit."""


def child_main(sock: socket.socket, start: Start) -> NoReturn:
    """Serve one stage until the other end of the socket is closed, then end the process.

    Args:
        sock: an AF_UNIX SOCK_SEQPACKET socket; the parent holds its other end.
        start: which stage, and what it may use.
    """
    _harden(sock, start)
    channel = Channel(sock)
    try:
        _serve(channel, start)
    except (EOFError, OSError):
        pass  # the run has ended
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(0)


def _harden(sock: socket.socket, start: Start) -> None:
    """The run's signals are the parent's to judge; a child ends with it, and leaves no core behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Our parent is the fork server, which lives as long as anyone holds this descriptor. Held by the run's process
    # alone, the end of that process ends the server, and the server's end ends a child that hangs in native code.
    server: Any = getattr(multiprocessing.forkserver, "_forkserver", None)
    alive = getattr(server, "_forkserver_alive_fd", None)
    if isinstance(alive, int):
        with suppress(OSError):
            os.close(alive)
        server._forkserver_alive_fd = None
    poll = select.poll()
    poll.register(sock, select.POLLHUP)
    if any(event & select.POLLHUP for _, event in poll.poll(0)):
        os._exit(0)  # the parent was gone before the kernel was asked to tell us
    resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE, _NO_CORE))
    if start.address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (start.address_space, start.address_space))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(_OOM_SCORE))


def _serve(channel: Channel, start: Start) -> None:
    try:
        stage = pickle.loads(start.stage)
        stage.setup()
    except Exception as error:
        channel.send(_fault(error, start.role))
        return
    channel.send(Ready())
    if start.role == "device":
        serve_device(channel, stage, _fault)
    work = _prepare if start.role == "prepare" else _finish
    while True:
        task = channel.receive()
        began = time.perf_counter()
        try:
            answer = work(stage, task)
        except Exception as error:
            answer = _fault(error, start.role, time.perf_counter() - began)
        del task
        channel.send(answer)
        del answer  # its memory is the parent's now


def _prepare(stage: Any, task: PrepareTask) -> Reply:
    began = time.perf_counter()
    result = stage(task.item)
    seconds = time.perf_counter() - began
    if not hasattr(result, "crops"):
        return Reply(result, seconds)
    rest = copy.copy(result)
    rest.crops = None
    crops = result.crops
    return Reply(PreparedParcels(len(crops), Parcel.pack(rest), Parcel.pack(crops)), seconds)


def _finish(stage: Any, task: FinishTask) -> Reply:
    prepared = task.prepared.open()
    prepared.crops = task.crops.open()
    parts = [parcel.open() for parcel in task.restored]
    restored = parts[0] if len(parts) == 1 else nothing_restored()
    if len(parts) > 1:
        restored.crops = np.concatenate([part.crops for part in parts])
        for name in ("angles", "kept", "blends"):
            values = [getattr(part, name) for part in parts]
            if all(value is not None for value in values):
                setattr(restored, name, [number for value in values for number in value])
        restored.ms = sum(part.ms for part in parts)
    began = time.perf_counter()
    result = stage(Finish(prepared, restored))
    return Reply(result, time.perf_counter() - began)


def _fault(error: Exception, role: Role, seconds: float = 0.0) -> Fault:
    """What the parent is told of an error."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, ImageError):
        return Fault("ImageError", error.reason, str(error), trace, seconds)
    if isinstance(error, FrDeployError):
        return Fault(type(error).__name__, "", str(error), trace, seconds)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fault("ResourceError", "", f"{error}: make room, then resume", trace, seconds)
    if isinstance(error, MemoryError) and role != "device":
        return Fault("ImageError", "too_large", "not enough memory", trace, seconds)
    return Fault("", "unexpected", f"{type(error).__name__}: {error}", trace, seconds)
