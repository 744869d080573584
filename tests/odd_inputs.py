"""Builders of odd image files, shared by the tests of reading and of the command line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# Undoing each EXIF orientation: what a camera did to an upright picture to store it.
STORED_FROM_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 3),
}


def gradient(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """An image whose every pixel differs from its mirror images."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, (x + 2 * y) * 2], -1).clip(0, 255).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b""
) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_rgb16(rgb: NDArray[np.uint8]) -> bytes:
    """A 16-bit RGB PNG whose high bytes are `rgb` and whose low bytes are all 0x80."""
    height, width, _ = rgb.shape
    wide = (rgb.astype(np.uint16) << 8 | 0x80).astype(">u2").reshape(height, -1)
    rows = b"".join(b"\x00" + row.tobytes() for row in wide)
    return raw_png(width, height, 16, 2, rows)


def bomb_header() -> bytes:
    return raw_png(60_000, 60_000, 8, 2, b"\x00")


def text_bomb(rgb: NDArray[np.uint8]) -> bytes:
    """A small picture with 80 MB of compressed text in front of it."""
    height, width, _ = rgb.shape
    text = chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(b"a" * 80_000_000))
    rows = b"".join(b"\x00" + row.tobytes() for row in rgb)
    return raw_png(width, height, 8, 2, rows, text)


def many_scans(rgb: NDArray[np.uint8], extra: int = 300) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    data = encoded(rgb, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * extra + data[-2:]


def encoded(pixels: NDArray[np.uint8] | Image.Image, name: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def turned_jpeg(rgb: NDArray[np.uint8], orientation: int, name: str = "PNG") -> bytes:
    """A file that stores `rgb` turned, with the EXIF orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED_FROM_UPRIGHT[orientation](rgb))
    options = {"quality": 95, "subsampling": 0} if name == "JPEG" else {}
    return encoded(stored, name, exif=exif.tobytes(), **options)


def swapped_profile() -> bytes:
    """An RGB profile like sRGB, but with the red and green primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    places = {profile[132 + 12 * i : 136 + 12 * i].decode(): 132 + 12 * i for i in range(count)}
    red, green = places["rXYZ"], places["gXYZ"]
    where = slice(red + 4, red + 12), slice(green + 4, green + 12)
    profile[where[0]], profile[where[1]] = profile[where[1]], profile[where[0]]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def cmyk_file(rgb: NDArray[np.uint8], name: str, **options: object) -> bytes:
    cmyk = Image.fromarray(rgb).convert("CMYK")
    return encoded(cmyk, name, **options)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def good_files(rgb: np.ndarray) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name, bytes, and the upright picture each must be read as."""
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    quantised = Image.fromarray(rgb).quantize(128)
    palette = np.asarray(quantised.convert("RGB"))
    gray = np.asarray(Image.fromarray(rgb).convert("L"))
    alpha = np.linspace(1, 255, rgb.size // 3).reshape(rgb.shape[:2]).astype(np.uint8)
    return {
        f"turned {n}.png": (turned_jpeg(rgb, n), rgb) for n in range(1, 9)
    } | {
        "alpha.png": (encoded(np.dstack([rgb, alpha]), "PNG"), rgb),
        "palette.png": (encoded(quantised, "PNG"), palette),
        "gray.png": (encoded(gray, "PNG"), gray[..., None].repeat(3, -1)),
        "16 bit.png": (png_rgb16(rgb), rgb),
        "cmyk.tif": (cmyk_file(rgb, "TIFF"), rgb),
        "cmyk.jpg": (cmyk_file(rgb, "JPEG", quality=98, subsampling=0), rgb),
        "animated.gif": (
            encoded(quantised, "GIF", save_all=True, append_images=[quantised.rotate(9)]),
            palette,
        ),
        "pages.tif": (encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), rgb),
        "progressive.jpg": (encoded(rgb, "JPEG", quality=98, progressive=True), rgb),
        "photo.webp": (encoded(rgb, "WEBP", lossless=True), rgb),
        "photo.bmp": (encoded(rgb, "BMP"), rgb),
        "truly a png.jpg": (encoded(rgb, "PNG"), rgb),
        "profile.png": (
            encoded(rgb[..., [1, 0, 2]], "PNG", icc_profile=swapped_profile()),
            rgb,
        ),
        "Ünïcode 日本 🙂.png": (encoded(rgb, "PNG"), rgb),
        "line\nbreak [red].png": (encoded(rgb, "PNG"), rgb),
    }  # fmt: skip


def bad_files(rgb: np.ndarray) -> dict[str, tuple[bytes, str]]:
    """Name, bytes, and the reason each must be refused with."""
    jpeg = encoded(rgb, "JPEG")
    return {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "text.jpg": (b"I am no photo", "not_an_image"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", "unsupported_format"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "unsupported_format"),
        "float.tif": (encoded(Image.new("F", (9, 9)), "TIFF"), "unsupported_format"),
        "empty.jpg": (b"", "not_an_image"),
        "bomb.png": (bomb_header(), "too_large"),
        "text bomb.png": (text_bomb(rgb[:9, :9]), "too_large"),
        "scans.jpg": (many_scans(rgb), "too_large"),
        "wide.png": (raw_png(1_000_000, 1, 8, 0, b"\x00" * 1_000_001), "too_large"),
        "zero.png": (raw_png(0, 0, 8, 2, b""), "corrupt"),
    }
