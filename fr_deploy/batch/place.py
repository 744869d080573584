"""Moving outputs to their places: never out of the destination, and never over a file of others."""

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

from fr_deploy.batch.durable import disk_error, fsync_folder, hash_file
from fr_deploy.batch.folder import FOLDER, make_durably

_FATAL = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}
)
"""Errors of the file system, not of one name in it: the run ends, to be resumed."""
_PASSING = frozenset({errno.EIO, errno.ESTALE})
"""Errors of network file systems that may be gone at the next try."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_TRIES = 3
_KNOWN = 10_000


class Placer:
    """Places files below a destination, and makes their folders."""

    def __init__(self, destination: Path) -> None:
        self._destination = destination
        self._known: set[Path] = set()
        self._dirty: set[Path] = set()

    def path_of(self, path: str) -> Path:
        """Where an output goes.

        Raises:
            OSError: its name would leave the destination, or enter the state's folder.
        """
        names = path.split("/")
        if names[0] == FOLDER or "\0" in path or any(name in ("", ".", "..") for name in names):
            raise OSError(errno.EINVAL, "not a place below the destination", path)
        return self._destination.joinpath(*names)

    def place(self, part: Path, path: str, *, replace: bool) -> None:
        """Rename a part to its place; durable after `sync`.

        Args:
            part: the file, on the disk.
            path: its place below the destination.
            replace: a file that is there is replaced; otherwise only one of the same bytes.

        Raises:
            FileExistsError: another file is there.
            OSError: any other error, after 3 tries where it may pass.
        """
        target = self.path_of(path)
        for left in reversed(range(_TRIES)):
            try:
                self._make(target.parent)
                _rename(part, target, replace)
            except FileNotFoundError:  # its folder was removed since it was made
                self._known.clear()
                if not left:
                    raise
            except OSError as error:
                if not left or error.errno not in _PASSING:
                    raise
                time.sleep(0.1)
            else:
                self._dirty.add(target.parent)
                return

    def remove(self, path: str) -> None:
        """Take back what was placed a moment ago."""
        with suppress(OSError):
            self.path_of(path).unlink()

    def sync(self) -> None:
        """Make all that was placed durable: one fsync for each folder.

        Raises:
            ResourceError: the file system failed.
        """
        for folder in self._dirty:
            try:
                fsync_folder(folder)
            except FileNotFoundError:
                continue  # it was removed meanwhile, with what was in it: `verify` will say so
            except OSError as error:
                raise disk_error(folder, error) from error
        self._dirty.clear()

    def raise_fatal(self, error: OSError, path: str) -> None:
        """Raise ResourceError if an error is not of one name but of the whole file system."""
        if error.errno in _FATAL:
            raise disk_error(self._destination / path, error) from error

    def _make(self, folder: Path) -> None:
        if folder in self._known:
            return
        make_durably(folder, self._dirty.add)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known.add(folder)


def _rename(part: Path, target: Path, replace: bool) -> None:
    if replace:
        part.replace(target)
        return
    try:
        # Not rename: that would replace a file that another program made since it was looked for.
        os.link(part, target)
    except FileExistsError:
        if not _same(part, target):
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not os.path.lexists(target):
            part.rename(target)
            return
        if not _same(part, target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
    part.unlink()


def _same(part: Path, target: Path) -> bool:
    """Whether a regular file has the very bytes of a part."""
    if target.is_symlink() or not target.is_file():
        return False
    same_size = part.stat().st_size == target.stat().st_size
    return same_size and hash_file(part) == hash_file(target)
