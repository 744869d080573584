"""Pixels to the bytes of a file, one rule a format."""

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.image_pixels import srgb_profile
from fr_deploy.png import write_png

_EXIF_PREFIX = b"Exif\x00\x00"


def encode(
    file: BinaryIO,
    name: str,
    rgb: NDArray[np.uint8],
    alpha: NDArray[np.uint8] | None = None,
    *,
    exif: bytes = b"",
    quality: int = 95,
) -> None:
    """Encode one photo.

    Args:
        file: open for binary writing.
        name: `JPEG` (4:4:4), `PNG`, `TIFF` (LZW, or raw if there is EXIF), `WEBP`, `AVIF` or `BMP` (no metadata).
        rgb: uint8 [H, W, 3], sRGB.
        alpha: uint8 [H, W]; only for formats that have it.
        exif: a TIFF block, or empty.
        quality: 1..100, for the lossy formats.

    Raises:
        ValueError: the format cannot hold the size or the metadata (Pillow's own message).
    """
    if name == "PNG":
        write_png(file, rgb, alpha, exif=exif)
        return
    image = Image.fromarray(rgb)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    options: dict[str, Any] = {"icc_profile": srgb_profile()} if name != "BMP" else {}
    if exif and name != "BMP":
        options["exif"] = _EXIF_PREFIX + exif
    match name:
        case "JPEG":
            options |= {"quality": quality, "subsampling": "4:4:4"}
        case "TIFF":
            # libtiff, which compresses, cannot write an EXIF block; Pillow's own raw writer can.
            options["compression"] = "raw" if exif else "tiff_lzw"
        case "WEBP" | "AVIF":
            options["quality"] = quality
        case _:
            pass
    image.save(file, name, **options)
