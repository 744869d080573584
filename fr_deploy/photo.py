"""What a photo is once read, and which formats there are. Imports numpy and Pillow alone."""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import features

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
            import cv2

            size = (rgb.shape[1], rgb.shape[0])
            alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        return replace(self, rgb=rgb, alpha=alpha)
