"""From any pixel layout Pillow decodes to 8-bit sRGB and an alpha plane."""

import io
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from fr_deploy.errors import ImageError

# The colour space that bytes 16 to 20 of a profile name, and the Pillow mode it fits.
_PROFILE_MODE = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_rgb(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, list[str]]:
    """Convert a decoded image.

    Rules (ours): palette and transparency colours become RGB and alpha; 16-bit samples keep their
    high byte; an embedded ICC profile is applied; CMYK without one follows the plain formula.

    Args:
        image: decoded, already turned upright.

    Returns:
        RGB uint8 [H, W, 3], alpha uint8 [H, W] or None, and warning codes.

    Raises:
        ImageError: reason `unsupported_format`, samples without an 8-bit meaning (float, 32-bit).
    """
    warnings: list[str] = []
    colour, alpha = _split_alpha(_to_8_bit(image))
    colour = _to_srgb(colour, image.info.get("icc_profile"), warnings)
    return np.array(colour), None if alpha is None else np.array(alpha), warnings


def srgb_of(pixels: NDArray[np.uint8], icc: bytes | None, warnings: list[str]) -> NDArray[np.uint8]:
    """RGB pixels, uint8 [H, W, 3], in sRGB by `to_rgb`'s rules: the same array if its profile asks for nothing.

    Args:
        pixels: RGB.
        icc: the file's profile, if it has one.
        warnings: codes are added to it.
    """
    if not icc or (profile := _usable_profile(icc, "RGB", warnings)) is None:
        return pixels
    return np.array(_converted(Image.fromarray(pixels), profile, warnings))


def is_deep(image: Image.Image) -> bool:
    """Whether a file holds 16-bit samples. Ask before its pixels are loaded: loading forgets it."""
    raw = " ".join(str(tile.args) for tile in getattr(image, "tile", []))
    return image.mode.startswith("I") or ";16" in raw


@cache
def srgb_profile() -> bytes:
    """The ICC profile written into files, so that every viewer knows the pixels are sRGB."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Bytes 24 to 35 say when it was made, to the second: two processes would write two different files of one photo.
    return data[:24] + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + data[36:]


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "LAB"):
        raise ImageError(
            "unsupported_format",
            f"its pixels are of kind {image.mode}; allowed are 8- and 16-bit gray, RGB, palette "
            "and CMYK: convert it to 16-bit RGB first",
        )
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(
            "unsupported_format",
            "its samples are 32-bit integers; allowed are 8 and 16 bits: convert it first",
        )
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        opaque = np.where(values == clear, 0, 255).astype(np.uint8)
        return Image.merge("LA", (gray, Image.fromarray(opaque)))
    return gray


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in mode L, RGB or CMYK, and the alpha plane if the image has transparency."""
    if image.has_transparency_data:
        if image.mode in ("LA", "La"):
            gray, alpha = image.convert("LA").split()
            return gray, alpha
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    if image.mode in ("L", "CMYK", "RGB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _to_srgb(image: Image.Image, icc: bytes | None, warnings: list[str]) -> Image.Image:
    if icc and (profile := _usable_profile(icc, image.mode, warnings)):
        image = _converted(image, profile, warnings)
    if image.mode == "CMYK":
        warnings.append("cmyk_without_profile")
    return image if image.mode == "RGB" else image.convert("RGB")


def _converted(
    image: Image.Image, profile: ImageCms.ImageCmsProfile, warnings: list[str]
) -> Image.Image:
    """The image in sRGB, or as it was where the profile turns out not to work."""
    try:
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), _INTENT, "RGB", flags=_FLAGS
        )
    except ImageCms.PyCMSError:
        warnings.append("icc_unusable")
        return image
    assert converted is not None  # only an in-place conversion returns nothing
    return converted


def _usable_profile(icc: bytes, mode: str, warnings: list[str]) -> ImageCms.ImageCmsProfile | None:
    """The profile to convert from; None if it is sRGB, damaged, or of another colour space."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        description = ImageCms.getProfileDescription(profile)
    except (ImageCms.PyCMSError, OSError, ValueError):
        warnings.append("icc_unusable")
        return None
    if _PROFILE_MODE.get(icc[16:20]) != mode:
        warnings.append("icc_of_another_colour_space")
        return None
    # A round trip through sRGB's own profile would only add rounding errors.
    return None if "srgb" in description.lower() else profile
