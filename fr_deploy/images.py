"""Reading photos that may be hostile, and writing them whole or not at all."""

import os
import stat
import struct
import warnings as python_warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import FrDeployError, ImageError
from fr_deploy.image_encode import encode
from fr_deploy.image_pixels import is_deep, to_rgb
from fr_deploy.image_signatures import signature_of
from fr_deploy.settings import Limits

# Never Pillow's full list: with it a PostScript file named .jpg starts Ghostscript.
READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF") + (
    ("AVIF",) if features.check("avif") else ()
)
SUFFIXES = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
} | ({".avif": "AVIF"} if "AVIF" in READABLE else {})
"""The suffixes that can be written, with their format."""

PILLOW_MAX_PIXELS = 178_956_970
"""Above this Pillow itself refuses to open a file, so no limit can be set higher."""

# Camera, dates, author. Left out on purpose: GPS, maker notes, thumbnails (they show the face as it
# was), XMP and IPTC (both can repeat the place), and sizes that an enlarged photo would contradict.
_KEPT_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_DROPPED_EXIF = {
    ExifTags.Base.MakerNote,
    ExifTags.Base.UserComment,
    ExifTags.Base.ExifInteroperabilityOffset,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
}
_EXIF_PREFIX = b"Exif\x00\x00"
_NO_ALPHA = {"JPEG", "BMP"}
_DAMAGED = (OSError, ValueError, struct.error, SyntaxError, IndexError, KeyError, TypeError)


@dataclass
class Photo:
    """A decoded photo: upright, 8-bit sRGB."""

    rgb: NDArray[np.uint8]
    """[H, W, 3]."""
    format: str
    """The format of the file's bytes, whatever its name says: `JPEG`, `PNG`, ..."""
    alpha: NDArray[np.uint8] | None = None
    """[H, W], if the file had transparency."""
    exif: bytes = b""
    """The metadata that is kept (camera, dates, author; no place), as a TIFF block."""
    warnings: list[str] = field(default_factory=list[str])
    """Codes of what was changed or lost, such as `reduced_to_8_bit`."""

    def with_rgb(self, rgb: NDArray[np.uint8]) -> "Photo":
        """The same photo with other pixels [H', W', 3]; alpha follows if the size changed."""
        alpha = self.alpha
        if alpha is not None and alpha.shape != rgb.shape[:2]:
            size = (rgb.shape[1], rgb.shape[0])
            alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        return replace(self, rgb=rgb, alpha=alpha)


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
    with _open_regular(path, limits) as file, python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always")
        try:
            photo = _decode(file, limits)
        except FrDeployError:
            raise
        except UnidentifiedImageError:
            raise _unidentified(file) from None
        except (Image.DecompressionBombError, MemoryError) as error:
            raise ImageError("too_large", f"too many pixels to decode: {error}") from error
        except (*_DAMAGED, EOFError) as error:
            raise _damaged(error) from error
    # Pillow warns about metadata it cannot parse; its warning about many pixels is ours to judge.
    if any(w.category is not Image.DecompressionBombWarning for w in caught):
        photo.warnings.append("metadata_damaged")
    photo.warnings = list(dict.fromkeys(photo.warnings))
    return photo


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
    name = SUFFIXES.get(path.suffix.lower())
    if name is None:
        raise ImageError(
            "unsupported_format",
            f"cannot write {path.name!r}: its suffix must be one of {', '.join(SUFFIXES)}",
        )
    codes: list[str] = []
    if photo.alpha is not None and name in _NO_ALPHA:
        photo = replace(photo, rgb=_over_white(photo.rgb, photo.alpha), alpha=None)
        codes.append("alpha_laid_over_white")
    if photo.exif and name == "BMP":
        codes.append("metadata_dropped")
    with atomic_write(path) as file:
        try:
            encode(file, name, photo.rgb, photo.alpha, exif=photo.exif, quality=quality)
        except (ValueError, RuntimeError) as error:  # a size or a value the format cannot hold
            raise ImageError("unwritable", f"cannot write {path} as {name}: {error}") from error
    return codes


def _open_regular(path: Path, limits: Limits) -> BinaryIO:
    """Open without ever blocking: a FIFO or a device in a folder must not stop a run."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", "is not a regular file")
        if status.st_size == 0:
            raise ImageError("not_an_image", "the file is empty")
        if status.st_size > limits.max_bytes:
            raise ImageError(
                "too_large", f"has {status.st_size} bytes; allowed are {limits.max_bytes}"
            )
        return path.open("rb")
    except FileNotFoundError as error:
        broken = path.is_symlink()
        text = (
            f"is a link to {os.readlink(path)}, which does not exist" if broken else "no such file"
        )
        raise ImageError("unreadable" if broken else "not_found", text) from error
    except OSError as error:
        raise ImageError("unreadable", error.strerror or str(error)) from error


def _decode(file: BinaryIO, limits: Limits) -> Photo:
    with Image.open(file, formats=READABLE) as image:
        _check_limits(image, file, limits)
        codes = ["first_frame_only"] if getattr(image, "is_animated", False) else []
        image.seek(0)
        if is_deep(image):
            codes.append("reduced_to_8_bit")
        image.load()
        exif = _upright(image, codes)
        rgb, alpha, more = to_rgb(image)
    # Phones store a second picture behind the first in a JPEG; Pillow then calls the format MPO.
    name = "JPEG" if image.format == "MPO" else str(image.format)
    return Photo(rgb, name, alpha, exif, codes + more)


def _check_limits(image: Image.Image, file: BinaryIO, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageError(
            "too_large",
            f"is {width}x{height} pixels; allowed are {limits.max_pixels} pixels and "
            f"{limits.max_side} a side (--max-pixels raises the first)",
        )
    if image.format in ("JPEG", "MPO"):
        # Inside coded data FF is always followed by 00 or a restart mark, so FF DA starts a scan.
        position = file.tell()
        file.seek(0)
        scans = file.read().count(b"\xff\xda")
        file.seek(position)
        if scans > limits.max_jpeg_scans:
            raise ImageError(
                "too_large", f"has {scans} JPEG scans; allowed are {limits.max_jpeg_scans}"
            )


def _upright(image: Image.Image, codes: list[str]) -> bytes:
    """Turn the image in place as its EXIF says, and return the metadata that is kept."""
    try:
        exif = image.getexif()
        ImageOps.exif_transpose(image, in_place=True)
        return _kept_metadata(exif)
    except _DAMAGED:
        codes.append("metadata_damaged")
        return b""


def _kept_metadata(exif: Image.Exif) -> bytes:
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in _KEPT_TAGS if tag in exif})
    details = exif.get_ifd(ExifTags.IFD.Exif)
    kept.get_ifd(ExifTags.IFD.Exif).update(
        {tag: value for tag, value in details.items() if tag not in _DROPPED_EXIF}
    )
    if not kept and not kept.get_ifd(ExifTags.IFD.Exif):
        return b""
    return kept.tobytes().removeprefix(_EXIF_PREFIX)


def _unidentified(file: BinaryIO) -> ImageError:
    file.seek(0)
    name = signature_of(file.read(512))
    if name in READABLE:
        return ImageError("corrupt", f"begins like {name}, but its header is damaged or cut short")
    allowed = ", ".join(READABLE)
    if name:
        return ImageError(
            "unsupported_format", f"is {name}; allowed are {allowed}: convert it first"
        )
    return ImageError("not_an_image", f"is no image; allowed are {allowed}")


def _damaged(error: BaseException) -> ImageError:
    text = str(error) or type(error).__name__
    if "too large" in text.lower():
        return ImageError("too_large", text)
    cut = isinstance(error, EOFError) or "truncated" in text.lower()
    return ImageError("truncated" if cut else "corrupt", text)


def _over_white(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    page = Image.new("RGB", (rgb.shape[1], rgb.shape[0]), "white")
    page.paste(Image.fromarray(rgb), mask=Image.fromarray(alpha))
    return np.array(page)
