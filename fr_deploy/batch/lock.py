"""One run at a time on a state folder: a lock that goes with the process that holds it, however that ends."""

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fr_deploy.batch.durable import disk_errors
from fr_deploy.errors import ResourceError, UsageError

WAIT_SECONDS = 2.0
"""A run that was killed a moment ago may still be on its way out."""
_BUSY = {errno.EAGAIN, errno.EACCES}


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; 0 and empty where it has not written who it is."""

    pid: int = 0
    host: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


class Lock:
    """Held from its creation to `close`, or to the end of this process."""

    def __init__(self, path: Path, *, wait: float = WAIT_SECONDS) -> None:
        """Take the lock.

        Args:
            path: the file that is locked; made if missing, never removed.
            wait: seconds after which one that is held is given up.

        Raises:
            UsageError: another process holds it.
            ResourceError: the file cannot be made, or its file system has no locks.
        """
        with disk_errors(path):
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _acquire(self._fd, path, time.monotonic() + wait)
            with disk_errors(path):
                text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, text, 0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock now; None: nobody."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _read_holder(fd) if error.errno in _BUSY else None
    else:
        return None
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                what = error.strerror or error
                raise ResourceError(
                    f"{path} cannot be locked: {what}; name a folder of another file system with --state"
                ) from error
            if time.monotonic() > until:
                raise UsageError(
                    f"{path.parent} is in use by {_read_holder(fd)}; wait for it, end it, "
                    "or name another folder with --state"
                ) from error
            time.sleep(0.05)
        else:
            return


def _read_holder(fd: int) -> Holder:
    with suppress(ValueError, KeyError, TypeError, OSError):
        value = json.loads(os.pread(fd, 4096, 0))
        return Holder(int(value["pid"]), str(value["host"]))
    return Holder()
