"""Bytes that may be hostile to the upright sRGB photo they show, or to a reason why not."""

import struct
import warnings as python_warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fr_deploy.errors import FrDeployError, ImageError
from fr_deploy.image_jpeg import plain_jpeg, turned
from fr_deploy.image_pixels import is_deep, srgb_of, to_rgb
from fr_deploy.image_signatures import signature_of
from fr_deploy.photo import READABLE, Photo
from fr_deploy.settings import Limits

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
_DAMAGED = (OSError, ValueError, struct.error, SyntaxError, IndexError, KeyError, TypeError)


def decode_photo(file: BinaryIO, limits: Limits | None = None) -> Photo:
    """Decode a photo: orientation applied, colours in sRGB, alpha apart, first frame only.

    Args:
        file: its bytes from the start, seekable: an open file or `io.BytesIO`.
        limits: what they may ask for; `Limits()` by default. How many they are is checked by `check_size`.

    Returns:
        As `fr_deploy.images.read_photo`.

    Raises:
        ImageError: with reason `not_an_image`, `unsupported_format`, `too_large`, `truncated` or `corrupt`.
    """
    limits = limits or Limits()
    with python_warnings.catch_warnings(record=True) as caught:
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


def check_size(size: int, limits: Limits) -> None:
    """Refuse a file by the number of its bytes.

    Raises:
        ImageError: reason `not_an_image` (none) or `too_large`.
    """
    if size == 0:
        raise ImageError("not_an_image", "the file is empty")
    if size > limits.max_bytes:
        raise ImageError("too_large", f"has {size} bytes; allowed are {limits.max_bytes}")


def _decode(file: BinaryIO, limits: Limits) -> Photo:
    with Image.open(file, formats=READABLE) as image:
        _check_pixels(image, limits)
        # Phones store a second picture behind the first in a JPEG; Pillow then calls the format MPO.
        name = "JPEG" if image.format == "MPO" else str(image.format)
        data = _bytes(file) if name == "JPEG" else b""
        _check_scans(data, limits)
        codes = ["first_frame_only"] if getattr(image, "is_animated", False) else []
        image.seek(0)
        if is_deep(image):
            codes.append("reduced_to_8_bit")
        pixels = plain_jpeg(data) if name == "JPEG" and image.mode == "RGB" else None
        if pixels is not None:
            pixels, exif = _upright_pixels(pixels, image, codes)
            rgb = srgb_of(pixels, image.info.get("icc_profile"), codes)
            return Photo(rgb, name, None, exif, codes)
        image.load()
        exif = _upright(image, codes)
        rgb, alpha, more = to_rgb(image)
    return Photo(rgb, name, alpha, exif, codes + more)


def _check_pixels(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageError(
            "too_large",
            f"is {width}x{height} pixels; allowed are {limits.max_pixels} pixels and "
            f"{limits.max_side} a side (--max-pixels raises the first)",
        )


def _bytes(file: BinaryIO) -> bytes:
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return data


def _check_scans(jpeg: bytes, limits: Limits) -> None:
    # Inside coded data FF is always followed by 00 or a restart mark, so FF DA starts a scan.
    scans = jpeg.count(b"\xff\xda")
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


def _upright_pixels(
    pixels: NDArray[np.uint8], image: Image.Image, codes: list[str]
) -> tuple[NDArray[np.uint8], bytes]:
    """The same for pixels that were not decoded by Pillow."""
    try:
        exif = image.getexif()
        pixels = turned(pixels, exif.get(ExifTags.Base.Orientation, 1))
        return pixels, _kept_metadata(exif)
    except _DAMAGED:
        codes.append("metadata_damaged")
        return pixels, b""


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
