"""The bytes of an item, wherever they lie, as they were when it was listed."""

import errno
import hashlib
import os
import tarfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fr_deploy.batch.archives import check_size, open_tar, read_tar_member, read_zip_member
from fr_deploy.batch.cloud import is_cloud, read_object
from fr_deploy.batch.item import Item
from fr_deploy.batch.names import is_url
from fr_deploy.batch.opened import OpenedFile, open_regular
from fr_deploy.batch.remote import PassingError, read_url
from fr_deploy.errors import ImageError
from fr_deploy.settings import Limits

OPEN_ARCHIVES = 4
_RETRIES = 3
_WAIT_SECONDS = 0.1
"""Before the first retry; doubled for each that follows."""
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOLINK, errno.EREMOTEIO}


@dataclass
class _Archive:
    file: OpenedFile
    tar: tarfile.TarFile | None

    def close(self) -> None:
        self.file.close()


class Fetcher:
    """Reads items; keeps the last 4 archives open. Picklable: the copy opens them anew.

    Args:
        limits: `max_bytes` of it is looked at, before anything is read where the size is known.
        seconds: for one item by http, all tries together.
        allow_private: URLs may lead to addresses that are not public.
    """

    def __init__(
        self, limits: Limits | None = None, *, seconds: float = 40.0, allow_private: bool = False
    ) -> None:
        self.limits = limits or Limits()
        self.seconds = seconds
        self.allow_private = allow_private
        self._archives: OrderedDict[str, _Archive] = OrderedDict()

    def fetch(self, item: Item) -> tuple[bytes, str]:
        """Read one item. A fault that may pass (of http, an object store, EIO, ESTALE) is tried 3 times more.

        Args:
            item: as it was listed.

        Returns:
            Its bytes and their SHA-256 in hexadecimal.

        Raises:
            ImageError: reason `vanished` or `changed` since it was listed, `not_found`, `unreadable`, `too_large`,
                `not_an_image` (empty); in archives `truncated` or `corrupt`; by http those of `read_url`.
            ResourceError: a package is missing.
        """
        data = self._retrying(item)
        check_size(len(data), self.limits.max_bytes)
        return data, hashlib.sha256(data).hexdigest()

    def close(self) -> None:
        """Close the archives."""
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_archives": OrderedDict()}

    def _retrying(self, item: Item) -> bytes:
        deadline = time.monotonic() + self.seconds
        read = self._reader(item)
        for number in range(_RETRIES + 1):
            try:
                return read(item, deadline)
            except PassingError as error:
                wait = _WAIT_SECONDS * 2**number
                if number == _RETRIES or time.monotonic() + wait >= deadline:
                    tries = f" (tried {number + 1} times)" if number else ""
                    raise ImageError(error.reason, f"{error}{tries}") from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _reader(self, item: Item) -> Callable[[Item, float], bytes]:
        if is_cloud(item.place):
            return self._read_cloud
        if is_url(item.place):
            return self._read_http
        return self._read_file if item.member is None else self._read_member

    def _read_http(self, item: Item, deadline: float) -> bytes:
        seconds = deadline - time.monotonic()
        most = self.limits.max_bytes
        return read_url(item.place, most, seconds=seconds, allow_private=self.allow_private)

    def _read_cloud(self, item: Item, deadline: float) -> bytes:
        del deadline  # the packages have time limits of their own
        if item.size is not None:
            check_size(item.size, self.limits.max_bytes)
        try:
            data = read_object(item.place, self.limits.max_bytes)
        except FileNotFoundError as error:
            raise _missing(item) from error
        except OSError as error:
            if isinstance(error, PermissionError):
                raise ImageError("unreadable", str(error)) from error
            if error.errno == errno.EINVAL:  # 416: an empty object has no first byte
                raise ImageError("unreadable", f"{error} (is it empty?)") from error
            raise PassingError("unreachable", f"{type(error).__name__}: {error}") from error
        if item.size is not None and len(data) != item.size:
            raise _changed(f"has {len(data)} bytes, listed were {item.size}")
        return data

    def _read_file(self, item: Item, deadline: float) -> bytes:
        del deadline
        try:
            with open_regular(item.place) as file:
                status = os.fstat(file.fileno())
                if item.size is not None and status.st_size != item.size:
                    raise _changed(f"has {status.st_size} bytes, listed were {item.size}")
                if item.mtime_ns is not None and status.st_mtime_ns != item.mtime_ns:
                    raise _changed("was written since")
                check_size(status.st_size, self.limits.max_bytes)
                data = file.read(status.st_size + 1)
        except OSError as error:
            raise _fault(item, error) from error
        if len(data) != status.st_size:
            raise _changed(f"its size went from {status.st_size} to {len(data)} while it was read")
        return data

    def _read_member(self, item: Item, deadline: float) -> bytes:
        del deadline
        most = self.limits.max_bytes
        try:
            archive = self._open(item.place)
            if archive.tar is None:
                return read_zip_member(archive.file, item, most)
            return read_tar_member(archive.tar, archive.file, item, most)
        except OSError as error:
            self._forget(item.place)  # a stale handle stays stale
            raise _fault(item, error) from error

    def _open(self, place: str) -> _Archive:
        if place not in self._archives:
            file = open_regular(place)
            try:
                tar = None if place.lower().endswith(".zip") else open_tar(file)
            except BaseException:
                file.close()
                raise
            self._archives[place] = _Archive(file, tar)
        self._archives.move_to_end(place)
        if len(self._archives) > OPEN_ARCHIVES:
            self._archives.popitem(last=False)[1].close()
        return self._archives[place]

    def _forget(self, place: str) -> None:
        archive = self._archives.pop(place, None)
        if archive is not None:
            archive.close()


def _changed(how: str) -> ImageError:
    return ImageError("changed", f"{how}: changed since it was listed; list it in a new run")


def _missing(item: Item) -> ImageError:
    if item.size is None:
        return ImageError("not_found", "no such file")
    return ImageError("vanished", "it is gone since it was listed")


def _fault(item: Item, error: OSError) -> ImageError:
    text = error.strerror or str(error)
    if error.errno in _PASSING:
        return PassingError("unreadable", text)
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError("unreadable", text)
    if os.path.islink(item.place) and item.size is None:
        target = os.readlink(item.place)
        return ImageError("unreadable", f"is a link to {target}, which does not exist")
    return _missing(item)
