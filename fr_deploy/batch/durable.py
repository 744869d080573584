"""Bytes that are on the disk when a call returns, or not in the file at all."""

import errno
import hashlib
import os
import secrets
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from fr_deploy.errors import ResourceError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota left, or a limit on the size of files (RLIMIT_FSIZE)."""
_CHUNK = 2**20


def disk_error(path: Path, error: OSError) -> ResourceError:
    """What ends a run whose state, or whose outputs, can no longer be written."""
    if error.errno in DISK_FULL:
        return ResourceError(f"{path}: the disk is full; free space and resume the run")
    what = error.strerror or str(error)
    return ResourceError(f"cannot write {path}: {what}; mend that and resume the run")


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn an OSError of the block into the ResourceError of `disk_error`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def write_all(fd: int, data: bytes | bytearray, offset: int) -> None:
    """Write at `offset`; a write that the system cut short is continued, so that its error is met.

    Raises:
        OSError: the disk is full, or cannot be written; some of the bytes may be there.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def fsync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder durable, where its file system can.

    Raises:
        OSError: the folder is gone, or its disk cannot be written.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(fd)


def replace_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that takes the place of `path` once all of it is on the disk.

    Args:
        path: its folder exists.
        chunks: the file's bytes; an error that this raises passes through, and leaves `path` as it was.

    Raises:
        ResourceError: the disk is full, or cannot be written.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with disk_errors(path):
            fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            _write_chunks(fd, path, chunks)
        finally:
            os.close(fd)
        with disk_errors(path):
            part.replace(path)
            fsync_folder(path.parent)
    finally:
        with suppress(OSError):  # renamed already, or it could not be made
            part.unlink()


def _write_chunks(fd: int, path: Path, chunks: Iterable[bytes]) -> None:
    pending, offset = bytearray(), 0
    for chunk in chunks:
        pending += chunk
        if len(pending) >= _CHUNK:
            with disk_errors(path):
                write_all(fd, pending, offset)
            offset += len(pending)
            pending = bytearray()
    with disk_errors(path):
        write_all(fd, pending, offset)
        os.fsync(fd)


class AppendFile:
    """A file that grows at its end, by whole appends only."""

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """Open, or create, for this process alone.

        Args:
            path: the file.
            keep: cut it to so many bytes; None: all of it is kept.

        Raises:
            ResourceError: it cannot be written.
        """
        self.path = path
        with disk_errors(path):
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            self.size = os.fstat(self._fd).st_size
            fsync_folder(path.parent)
        if keep is not None:
            self.cut(keep)

    def cut(self, keep: int) -> None:
        """Cut off what is behind the first `keep` bytes, durably.

        Raises:
            ResourceError: it cannot be written.
        """
        if keep < self.size:
            with disk_errors(self.path):
                os.ftruncate(self._fd, keep)
                os.fsync(self._fd)
            self.size = keep

    def rewrite(self, data: bytes) -> None:
        """Put other bytes in the place of all that it holds, with one fsync; a crash leaves neither, but a torn file.

        Raises:
            ResourceError: the disk is full, or cannot be written; the file is empty then.
        """
        try:
            if self.size > len(data):
                os.ftruncate(self._fd, len(data))
            write_all(self._fd, data, 0)
            os.fsync(self._fd)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, 0)
            self.size = 0
            raise disk_error(self.path, error) from error
        self.size = len(data)

    def append(self, data: bytes, *, sync: bool) -> None:
        """Add bytes with one write; if that fails, none of them stay.

        Args:
            data: what to add.
            sync: return when they are on the disk; otherwise they outlive this process, but no power cut.

        Raises:
            ResourceError: the disk is full, or cannot be written.
        """
        try:
            write_all(self._fd, data, self.size)
            if sync:
                os.fsync(self._fd)
        except OSError as error:
            with suppress(OSError):  # what stays is a torn line, dropped at the next opening
                os.ftruncate(self._fd, self.size)
            raise disk_error(self.path, error) from error
        self.size += len(data)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close it; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def hash_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file, in constant memory.

    Raises:
        OSError: it is missing or cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
