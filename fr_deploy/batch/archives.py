"""Photos inside tar and zip files: listed once, then read where they lie. Nothing is ever extracted."""

import math
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from fr_deploy.batch.item import Item
from fr_deploy.batch.names import Notes, relative_name
from fr_deploy.batch.opened import OpenedFile, open_regular
from fr_deploy.errors import ImageError
from fr_deploy.inputs import PHOTO_SUFFIXES

ARCHIVE_SUFFIXES = frozenset((".tar", ".zip"))
OTHER_ARCHIVES = frozenset(
    (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".7z", ".rar")
)
"""Named as failures, not passed over: someone's photos are in there."""
MAX_MEMBERS = 2_000_000
"""Members of one archive that are looked at."""
# A header of tar with its long names and extended records: 1.5 kB where names are long. Without a limit an extended
# record of 10 GB, 2 kB on disk as a sparse file, would be read into memory.
_MAX_TAR_HEADER = 64 * 2**10
# Of a zip file's directory, 46 bytes and the name for each member: 200,000 photos have about 17 MB. Python keeps
# 0.6 kB for each while they are listed.
_MAX_ZIP_DIRECTORY = 32 * 2**20
_MAX_RATIO = 200
"""Of sizes in a zip file, for members above 1 MiB: photos hardly shrink, bombs do a thousand times."""
_RATIO_FROM = 2**20
_BLOCK = 512
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PIECE = 256 * 2**10
_ZIP_HEAD = struct.Struct("<4s5H3L2H")
_DAMAGED_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError, KeyError)
_DAMAGED_ZIP = (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, KeyError)


@dataclass(frozen=True)
class Member:
    """A photo inside an archive."""

    raw: str
    """Its name as it is written there."""
    name: str
    """The same, tidied and safe."""
    offset: int
    """Where its header begins, bytes from the start of the file."""
    size: int
    """Bytes, unpacked."""
    mtime_ns: int | None


def list_members(path: str, notes: Notes) -> Iterator[Member]:
    """Find the photos of a tar or zip file, one after the other.

    Hidden members and those that are no photos by their suffix are counted as ignored. Links, devices, absolute names,
    names with `..`, encrypted members and those that would unpack to more than 200 times their size are refused.

    Args:
        path: ends in `.tar` or `.zip`.
        notes: takes what is refused or ignored, also that the archive is damaged.
    """
    listed = _list_zip if path.lower().endswith(".zip") else _list_tar
    try:
        with open_regular(path) as file:
            for count, member in enumerate(listed(file, path, notes)):
                if count >= MAX_MEMBERS:
                    text = f"has more than {MAX_MEMBERS} members; the rest is left out: split it"
                    notes.refuse(path, "too_many_members", text)
                    return
                if member is not None:
                    yield member
    except ImageError as error:
        notes.refuse(path, error.reason, str(error))
    except OSError as error:
        notes.refuse(path, "unreadable", error.strerror or str(error))


def open_tar(file: OpenedFile) -> tarfile.TarFile:
    """A tar file to read members from, without reading its list.

    Raises:
        ImageError: reason `changed`, it is no tar file any more.
        OSError: it cannot be read.
    """
    try:
        file.left = _MAX_TAR_HEADER
        return tarfile.TarFile(fileobj=file)
    except _DAMAGED_TAR as error:
        raise ImageError("changed", f"the archive is no tar file any more: {error}") from None
    finally:
        file.left = None


def read_tar_member(tar: tarfile.TarFile, file: OpenedFile, item: Item, max_bytes: int) -> bytes:
    """Read a member where the list says it is.

    Args:
        tar: as `open_tar` returns it.
        file: what it was opened on.
        item: of `list_members`.
        max_bytes: what is allowed.

    Raises:
        ImageError: reason `changed`, `too_large`, `truncated`, or `not_an_image` if it is empty.
        OSError: the file cannot be read.
    """
    file.seek(item.offset or 0)
    try:
        file.left = _MAX_TAR_HEADER
        info = tarfile.TarInfo.fromtarfile(tar)
    except _DAMAGED_TAR as error:
        raise ImageError("changed", f"the archive has no member there any more: {error}") from None
    finally:
        file.left = None
    same = info.isreg() and info.name == item.member and info.size == item.size
    if not same or _mtime_ns(info) != item.mtime_ns:
        raise ImageError("changed", "another member is at its place since the archive was listed")
    check_size(info.size, max_bytes)
    data = file.read(info.size)
    if len(data) != info.size:
        raise ImageError("truncated", f"the archive ends after {len(data)} of {info.size} bytes")
    return data


def read_zip_member(file: OpenedFile, item: Item, max_bytes: int) -> bytes:
    """Read and inflate a member where the list says it is; its CRC must fit.

    Args:
        file: the zip file.
        item: of `list_members`.
        max_bytes: what is allowed.

    Raises:
        ImageError: reason `changed`, `too_large`, `truncated`, `corrupt`, or `not_an_image` if it is empty.
        OSError: the file cannot be read.
    """
    size = item.size or 0
    file.seek(item.offset or 0)
    head = file.read(_ZIP_HEAD.size)
    if len(head) != _ZIP_HEAD.size:
        raise ImageError("changed", "the archive was cut since it was listed")
    magic, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = _ZIP_HEAD.unpack(head)
    name = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437", "replace")
    if magic != b"PK\x03\x04" or name != item.member or method not in _METHODS:
        raise ImageError("changed", "another member is at its place since the archive was listed")
    check_size(size, max_bytes)
    file.seek(extra_bytes, os.SEEK_CUR)
    data, rest = _inflate(file, size) if method else (file.read(size), b"")
    if len(data) != size:
        raise ImageError("truncated", f"ends after {len(data)} of {size} bytes")
    if flags & 8:  # the CRC follows the data, behind a mark that may be missing
        crc = int.from_bytes((rest + file.read(8))[:8].removeprefix(b"PK\x07\x08")[:4], "little")
    if zlib.crc32(data) != crc:
        raise ImageError("corrupt", "its CRC is another: the archive is damaged here")
    return data


def check_size(size: int, max_bytes: int) -> None:
    """Refuse an empty photo, or one of more than `max_bytes`.

    Raises:
        ImageError: reason `not_an_image` or `too_large`.
    """
    if size <= 0:
        raise ImageError("not_an_image", "the file is empty")
    if size > max_bytes:
        raise ImageError("too_large", f"has {size} bytes; allowed are {max_bytes}")


def _list_tar(file: OpenedFile, path: str, notes: Notes) -> Iterator[Member | None]:
    """Headers read one by one: TarFile's own loop keeps them all, and takes a damaged one for the end."""
    total = os.fstat(file.fileno()).st_size
    try:
        file.left = _MAX_TAR_HEADER
        tar = tarfile.TarFile(fileobj=file)
        position = 0
        while True:
            file.left = _MAX_TAR_HEADER
            file.seek(position)
            block = file.read(_BLOCK)
            if len(block) < _BLOCK:
                text = "ends without the mark of its end: it may be cut; what it holds is taken"
                notes.refuse(path, "truncated", text)
                return
            if block == bytes(_BLOCK):
                return
            file.seek(position)
            info = tarfile.TarInfo.fromtarfile(tar)
            if info.isreg() and info.offset_data + info.size > total:
                text = f"is cut: the archive should have {info.offset_data + info.size} bytes"
                notes.refuse(f"{path}/{info.name}", "truncated", text)
                return
            if tar.offset <= position or info.size < 0:
                raise ValueError("a size below zero")
            yield _tar_member(info, path, notes)
            position = tar.offset
    except _DAMAGED_TAR as error:
        notes.refuse(path, "corrupt", f"is no sound tar file from here on: {error}")


def _tar_member(info: tarfile.TarInfo, path: str, notes: Notes) -> Member | None:
    if info.isdir():
        return None
    name = _photo_name(info.name, path, notes)
    if name is None:
        return None
    if info.issparse():
        notes.refuse(f"{path}/{info.name}", "unsupported_archive", "is stored with holes")
    elif not info.isreg():
        kind = "a link" if info.islnk() or info.issym() else "a device or of unknown kind"
        notes.refuse(f"{path}/{info.name}", "not_a_file", f"is {kind}; allowed are files")
    else:
        return Member(info.name, name, info.offset, info.size, _mtime_ns(info))
    return None


def _mtime_ns(info: tarfile.TarInfo) -> int:
    return round(info.mtime * 1e9) if math.isfinite(info.mtime) else 0


def _list_zip(file: OpenedFile, path: str, notes: Notes) -> Iterator[Member | None]:
    try:
        file.left = _MAX_ZIP_DIRECTORY
        entries = zipfile.ZipFile(file).infolist()
    except _DAMAGED_ZIP as error:
        notes.refuse(path, "corrupt", f"is no sound zip file: {error}")
        return
    for entry in entries:
        yield None if entry.is_dir() else _zip_member(entry, path, notes)


def _zip_member(entry: zipfile.ZipInfo, path: str, notes: Notes) -> Member | None:
    name = _photo_name(entry.orig_filename, path, notes)
    if name is None:
        return None
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "a link" if stat.S_ISLNK(mode) else "a device or of unknown kind"
        reason, text = "not_a_file", f"is {kind}; allowed are files"
    elif entry.flag_bits & 1:
        reason, text = "encrypted", "is encrypted: unpack the archive first"
    elif entry.compress_type not in _METHODS:
        reason, text = "unsupported_archive", "is packed in another way than by deflate"
    elif entry.file_size > max(_RATIO_FROM, _MAX_RATIO * entry.compress_size):
        times = entry.file_size // max(1, entry.compress_size)
        reason, text = "bomb", f"would unpack to {times} times its size; allowed are {_MAX_RATIO}"
    else:
        return Member(entry.orig_filename, name, entry.header_offset, entry.file_size, None)
    notes.refuse(f"{path}/{entry.orig_filename}", reason, text)
    return None


def _photo_name(raw: str, path: str, notes: Notes) -> str | None:
    """The tidied name of a member, or None if it is no photo, or hidden, or not safe."""
    if os.path.splitext(raw)[1].lower() not in PHOTO_SUFFIXES:
        notes.ignored += 1
        return None
    try:
        name = relative_name(raw)
    except ImageError as error:
        notes.refuse(f"{path}/{raw}", error.reason, str(error))
        return None
    if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
        notes.ignored += 1
        return None
    return name


def _inflate(file: OpenedFile, size: int) -> tuple[bytes, bytes]:
    """At most one byte more than `size`, and the 8 bytes behind the compressed data where they were read already."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    left = size + 1
    try:
        while left and not inflater.eof:
            packed = inflater.unconsumed_tail or file.read(_PIECE)
            if not packed:
                break
            parts.append(inflater.decompress(packed, left))
            left -= len(parts[-1])
    except zlib.error as error:
        raise ImageError("corrupt", f"the archive is damaged here: {error}") from None
    if not left:
        raise ImageError("corrupt", f"unpacks to more than the {size} bytes it was listed with")
    return b"".join(parts), inflater.unused_data[:8]
