"""What a photo may ask for and how it is restored: apart from the code that does it, which is slow to import."""

from dataclasses import dataclass
from typing import Literal

from fr_deploy.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What a file may ask for, checked from its header before a pixel is decoded."""

    max_pixels: int = 50_000_000
    max_side: int = 16_384
    max_bytes: int = 512 * 2**20
    # Encoders write about 10 scans. 200 empty ones over 64 megapixels cost 7 s for a 395 kB file.
    max_jpeg_scans: int = 100


@dataclass(frozen=True)
class RestoreOptions:
    """How a photo is restored.

    Raises:
        UsageError: `upscale` or `blend` is out of range.
    """

    faces: Literal["all", "largest", "center"] = "all"
    """Which of the faces found are restored: all, the largest box, or the box nearest the centre."""
    min_face: int = 24
    """Faces whose box has a longer side of fewer pixels are left alone."""
    rotations: tuple[int, ...] = (0,)
    """Angles in degrees at which faces are looked for."""
    upscale: float = 1.0
    """The whole photo is enlarged by this, 1 to 4; the faces gain the most, the rest is Lanczos."""
    blend: float = 1.0
    """1 is the restored face, 0 the original, between them a mix."""
    aligned: bool = False
    """The input is one face crop already: no detection and no paste back."""

    def __post_init__(self) -> None:
        if not 1 <= self.upscale <= 4:
            raise UsageError(f"upscale is {self.upscale}; allowed are 1 to 4")
        if not 0 <= self.blend <= 1:
            raise UsageError(f"blend is {self.blend}; allowed are 0 to 1")
