"""Reading photos that may be hostile, and writing them whole or not at all."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ImageError
from fr_deploy.image_decode import check_size, decode_photo
from fr_deploy.image_encode import encode
from fr_deploy.photo import READABLE, SUFFIXES, Photo
from fr_deploy.settings import Limits

__all__ = [
    "PILLOW_MAX_PIXELS",
    "READABLE",
    "SUFFIXES",
    "Limits",
    "Photo",
    "encode_photo",
    "format_of",
    "read_photo",
    "write_photo",
]
PILLOW_MAX_PIXELS = 178_956_970
"""Above this Pillow itself refuses to open a file, so no limit can be set higher."""

_NO_ALPHA = {"JPEG", "BMP"}


def read_photo(path: Path, limits: Limits | None = None) -> Photo:
    """Read a photo: orientation applied, colours in sRGB, alpha apart, first frame only.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF file, recognised by its bytes.
        limits: what the file may ask for; `Limits()` by default.

    Returns:
        The photo; `warnings` holds `reduced_to_8_bit`, `cmyk_without_profile`, `icc_unusable`,
        `icc_of_another_colour_space`, `first_frame_only` or `metadata_damaged` where they apply.

    Raises:
        ImageError: with reason `not_found`, `unreadable`, `not_an_image`, `unsupported_format`,
            `too_large`, `truncated` or `corrupt`.
    """
    limits = limits or Limits()
    with _open_regular(path, limits) as file:
        return decode_photo(file, limits)


def write_photo(path: Path, photo: Photo, *, quality: int = 95) -> list[str]:
    """Write a photo whole or not at all; the name's suffix decides the format.

    JPEG is written without chroma subsampling. Every format but BMP carries an sRGB tag and the
    EXIF that was kept. Transparency is laid over white where the format has none (JPEG, BMP).

    Args:
        path: ends in one of `SUFFIXES`; its folder is made if missing.
        photo: what to write.
        quality: 1..100, for JPEG, WebP and AVIF.

    Returns:
        Warning codes: `alpha_laid_over_white`, `metadata_dropped`.

    Raises:
        ImageError: reason `unsupported_format` (the suffix) or `unwritable`.
        ResourceError: the disk is full.
    """
    name = format_of(path.name)
    with atomic_write(path) as file:
        return encode_photo(file, name, photo, quality=quality)


def format_of(name: str) -> str:
    """The format that a file's name asks for by its suffix, one of `SUFFIXES`.

    Raises:
        ImageError: reason `unsupported_format`.
    """
    found = SUFFIXES.get(Path(name).suffix.lower())
    if found is None:
        raise ImageError(
            "unsupported_format",
            f"cannot write {Path(name).name!r}: its suffix must be one of {', '.join(SUFFIXES)}",
        )
    return found


def encode_photo(file: BinaryIO, name: str, photo: Photo, *, quality: int = 95) -> list[str]:
    """Encode a photo into an open file, by the rules of `write_photo`.

    Args:
        file: open for writing.
        name: one of the formats of `SUFFIXES`.
        photo: what to write.
        quality: 1..100, for JPEG, WebP and AVIF.

    Returns:
        Warning codes, as `write_photo`.

    Raises:
        ImageError: reason `unwritable`, a size or a value that the format cannot hold.
    """
    codes: list[str] = []
    if photo.alpha is not None and name in _NO_ALPHA:
        photo = replace(photo, rgb=_over_white(photo.rgb, photo.alpha), alpha=None)
        codes.append("alpha_laid_over_white")
    if photo.exif and name == "BMP":
        codes.append("metadata_dropped")
    try:
        encode(file, name, photo.rgb, photo.alpha, exif=photo.exif, quality=quality)
    except (ValueError, RuntimeError) as error:
        raise ImageError("unwritable", f"cannot be written as {name}: {error}") from error
    return codes


def _open_regular(path: Path, limits: Limits) -> BinaryIO:
    """Open without ever blocking: a FIFO or a device in a folder must not stop a run."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", "is not a regular file")
        check_size(status.st_size, limits)
        return path.open("rb")
    except FileNotFoundError as error:
        broken = path.is_symlink()
        text = (
            f"is a link to {os.readlink(path)}, which does not exist" if broken else "no such file"
        )
        raise ImageError("unreadable" if broken else "not_found", text) from error
    except OSError as error:
        raise ImageError("unreadable", error.strerror or str(error)) from error


def _over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    page = Image.new("RGB", (rgb.shape[1], rgb.shape[0]), "white")
    page.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.array(page)
