"""The places that a user's names stand for: files, folders, patterns, archives, lists, URLs."""

import glob
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from fr_deploy.batch.archives import ARCHIVE_SUFFIXES, OTHER_ARCHIVES, list_members
from fr_deploy.batch.cloud import is_cloud, list_objects
from fr_deploy.batch.manifests import MANIFEST_SUFFIXES, Row, read_manifest
from fr_deploy.batch.names import Notes, is_url, name_of_path, name_of_url
from fr_deploy.errors import ImageError
from fr_deploy.inputs import PHOTO_SUFFIXES, Inputs, find_below, find_pattern

ARCHIVES_FOUND = ARCHIVE_SUFFIXES | OTHER_ARCHIVES
"""Met in folders besides photos."""


@dataclass(frozen=True)
class Found:
    """Where a photo was found, before it has a place in the list."""

    name: str
    place: str
    output_from: str = ""
    """What its output is named after, if that is not its name."""
    output: str | None = None
    """Its output as a manifest says it."""
    where: str = ""
    """The line of a list that names it."""
    member: str | None = None
    offset: int | None = None
    size: int | None = None
    mtime_ns: int | None = None


class Finder:
    """Goes to the places that names stand for.

    Args:
        avoid: resolved folders to stay out of.
        allow_http: whether http and https URLs are taken.
    """

    def __init__(self, avoid: frozenset[Path], allow_http: bool) -> None:
        self.notes = Notes()
        self._avoid = avoid
        self._allow_http = allow_http

    def named(self, name: str) -> Iterator[Found]:
        """What one name on the command line stands for; items are named below it.

        Raises:
            UsageError: as `read_manifest`.
            ResourceError: as `list_objects`; other faults of a place are noted.
        """
        if os.path.lexists(name):
            path = os.path.abspath(name)
            if _suffix(path) in MANIFEST_SUFFIXES and os.path.isfile(path):
                yield from self.rows(read_manifest(path, self.notes), os.path.dirname(path))
            else:
                yield from self.at(path, "" if os.path.isdir(path) else os.path.basename(path))
        elif is_url(name):
            yield from self._url(name, None)
        elif glob.has_magic(name):
            yield from self._pattern(name)
        else:
            self.notes.refuse(name, "not_found", "no such file or folder")

    def rows(self, rows: Iterator[Row], folder: str) -> Iterator[Found]:
        """What the rows of a list stand for; items are named by the whole path that is written there.

        Args:
            rows: of a manifest or of standard input.
            folder: where relative paths begin.

        Raises:
            UsageError, ResourceError: as what gives the rows.
        """
        for row in rows:
            if not _can_be_named(row.path):
                self.notes.refuse(row.where, "unsafe_name", "is no name that a file can have")
                continue
            if is_url(row.path):
                yield from self._url(row.path, row)
                continue
            path = os.path.abspath(os.path.join(folder, row.path))
            if row.name is None and row.output is None:
                yield from self.at(path, name_of_path(row.path), row.where)
            elif _suffix(path) in ARCHIVES_FOUND or os.path.isdir(path):
                text = "names a folder or an archive; leave name and output out, or name one photo"
                self.notes.refuse(row.where, "bad_row", text)
            else:
                yield _file(path, row.name or name_of_path(row.path), row.output, row.where)

    def at(self, path: str, relative: str, where: str = "") -> Iterator[Found]:
        """A file, a folder or an archive, named `relative` in the list.

        Args:
            path: absolute.
            relative: may be empty for a folder.
            where: the line of a list that names it.
        """
        suffix = _suffix(path)
        if os.path.isdir(path):
            yield from self._folder(path, relative)
        elif suffix in ARCHIVE_SUFFIXES:
            stem = relative[: -len(suffix)]
            for m in list_members(path, self.notes):
                more = (m.raw, m.offset, m.size, m.mtime_ns)
                yield Found(f"{relative}/{m.name}", path, f"{stem}/{m.name}", None, "", *more)
        elif suffix in OTHER_ARCHIVES:
            text = f"is packed as {suffix}; allowed are .tar and .zip: unpack or repack it first"
            self.notes.refuse(path, "unsupported_archive", text)
        else:
            yield _file(path, relative, None, where)

    def _folder(self, path: str, relative: str) -> Iterator[Found]:
        inputs = Inputs()
        before = self.notes.refused
        empty = True
        for source in find_below(inputs, Path(path), self._avoid, ARCHIVES_FOUND):
            self.notes.take(inputs)
            path_here, name = str(source.path), str(relative / source.relative)
            if _suffix(name) in ARCHIVES_FOUND:
                yield from self.at(path_here, name)
            else:
                yield _file(path_here, name, None)
            empty = False
        self.notes.take(inputs)
        if empty and self.notes.refused == before:
            self.notes.refuse(path, "empty_folder", "holds no photo")

    def _pattern(self, pattern: str) -> Iterator[Found]:
        inputs = Inputs()
        for source in find_pattern(inputs, pattern, self._avoid, ARCHIVES_FOUND):
            self.notes.take(inputs)
            yield from self.at(os.path.abspath(source.path), str(source.relative))
        self.notes.take(inputs)

    def _url(self, url: str, row: Row | None) -> Iterator[Found]:
        where = row.where if row else url
        scheme = url.partition("://")[0].lower()
        try:
            if scheme in ("http", "https"):
                yield self._http(url, row)
            elif is_cloud(url):
                yield from self._cloud(url, row)
            else:
                text = f"{scheme}:// is not read; allowed are http, https, s3 and gs"
                raise ImageError("unsupported_scheme", text)
        except ImageError as error:
            self.notes.refuse(where, error.reason, str(error))
        except OSError as error:
            reason = "not_found" if isinstance(error, FileNotFoundError) else "unreachable"
            self.notes.refuse(where, reason, f"{type(error).__name__}: {error}")

    def _http(self, url: str, row: Row | None) -> Found:
        if not self._allow_http:
            raise ImageError("http_not_allowed", "is fetched from the network only by --allow-http")
        name = name_of_url(url)
        if row is None:
            name = name.rstrip("/").rsplit("/", 1)[-1]
        row = row or Row(url, url)
        return Found(row.name or name, url, output=row.output, where=row.where)

    def _cloud(self, url: str, row: Row | None) -> Iterator[Found]:
        """A manifest's row is one object, of whatever name; a prefix stands for the photos below it."""
        if row is not None:
            name = row.name or name_of_url(url)
            yield Found(name, url, output=row.output, where=row.where)
            return
        empty = True
        for stored in list_objects(url):
            empty = False
            suffix = _suffix(stored.relative)
            if suffix in ARCHIVES_FOUND:
                text = "archives are read from files alone: copy it here first"
                self.notes.refuse(stored.url, "unsupported_archive", text)
            elif stored.url == url or (suffix in PHOTO_SUFFIXES and not _hidden(stored.relative)):
                yield Found(stored.relative, stored.url, size=stored.size)
            else:
                self.notes.ignored += 1
        if empty:
            self.notes.refuse(url, "empty_folder", "holds nothing")


def _file(path: str, name: str, output: str | None, where: str = "") -> Found:
    """A file as it is now; what is none, or is not there, fails when it is fetched."""
    size = mtime_ns = None
    with suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            size, mtime_ns = status.st_size, status.st_mtime_ns
    return Found(name, path, "", output, where, size=size, mtime_ns=mtime_ns)


def _can_be_named(path: str) -> bool:
    """Not with a NUL, nor with half a surrogate pair (from JSON)."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _suffix(path: str | PurePath) -> str:
    return os.path.splitext(path)[1].lower()


def _hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))
