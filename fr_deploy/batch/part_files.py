"""Outputs before they are committed: files of names that nobody else takes, on the disk when a call returns."""

import errno
import os
import secrets
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from fr_deploy.batch.durable import disk_error, write_all
from fr_deploy.batch.item import Output

_PASSING = {errno.EIO, errno.ESTALE}
"""What network file systems answer while their server comes back."""
_TRIES = 3
_PAUSE_SECONDS = 0.2


def write_part(folder: Path, index: int, place: str, data: bytes) -> tuple[str, Output]:
    """Write one output as a part.

    Args:
        folder: where parts lie; made if missing.
        index: of its item, which is in its name, so that a file left behind can be told.
        place: where it is to go below the destination.
        data: its bytes.

    Returns:
        The part's absolute path, and what the ledger is to say.

    Raises:
        ResourceError: the disk is full or cannot be written. No part is left.
    """
    for turn in range(_TRIES):
        part = folder.absolute() / f"{secrets.token_hex(8)}-{index}.part"
        try:
            _write(part, data)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            if error.errno not in _PASSING or turn == _TRIES - 1:
                raise disk_error(folder, error) from error
            time.sleep(_PAUSE_SECONDS)
        else:
            return str(part), Output(place, len(data), sha256(data).hexdigest())
    raise AssertionError


def remove_parts(parts: list[str]) -> None:
    """Remove parts whose item comes to nothing.

    Args:
        parts: absolute paths; one that is gone is passed over.
    """
    for part in parts:
        with suppress(OSError):
            os.unlink(part)


def _write(part: Path, data: bytes) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    # Mode 0666, so that the umask decides as for any new file.
    fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
