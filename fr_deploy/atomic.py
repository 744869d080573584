"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fr_deploy.errors import ImageError, ResourceError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file beside `path` that becomes `path` if the block ends well.

    The bytes are flushed and synced before the rename, so a crash leaves the old file or the new.

    Yields:
        The temporary file, open for writing. It is removed if the block raises.

    Raises:
        ResourceError: the disk is full.
        ImageError: reason `unwritable`, any other error of the file system.
    """
    # A short random name: a name made from `path` could pass the 255 bytes a file system allows.
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Mode 0666 so that the umask decides, as for any new file (tempfile would give 0600).
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise ResourceError(f"{path}: the disk is full; free space and run again") from error
        raise ImageError("unwritable", f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # renamed already, or its folder could not be made
            part.unlink()
