"""Reading: every pixel layout comes out as the upright sRGB picture it shows, or as a named reason."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import odd_inputs as odd
from fr_deploy.errors import ImageError
from fr_deploy.images import Limits, read_photo

RGB = odd.gradient()


def read(tmp_path: Path, data: bytes, name: str = "photo.bin"):
    return read_photo(odd.write(tmp_path, name, data))


def reason(tmp_path: Path, data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read_photo(odd.write(tmp_path, "bad.jpg", data), limits)
    assert str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_turned_upright(tmp_path, orientation, name):
    options = {"lossless": True, "exact": True} if name == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(odd.STORED_FROM_UPRIGHT[orientation](RGB))
    photo = read(tmp_path, odd.encoded(stored, name, exif=exif, **options))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.format == name
    assert 0x0112 not in _loaded(photo.exif)


def _loaded(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    if block:
        exif.load(b"Exif\x00\x00" + block)
    return exif


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP"])
def test_plain_rgb_is_exact(tmp_path, name):
    photo = read(tmp_path, odd.encoded(RGB, name))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.alpha is None
    assert photo.warnings == []


def test_gray_becomes_rgb(tmp_path):
    photo = read(tmp_path, odd.encoded(RGB[..., 1].copy(), "PNG"))
    np.testing.assert_array_equal(photo.rgb, RGB[..., [1, 1, 1]])


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = RGB[..., 0] > 100
    photo = read(tmp_path, odd.encoded(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(photo.rgb[..., 0], np.where(bits, 255, 0))


def test_alpha_is_kept_apart(tmp_path):
    alpha = RGB[..., 2]
    photo = read(tmp_path, odd.encoded(np.dstack([RGB, alpha]), "PNG"))
    np.testing.assert_array_equal(photo.rgb, RGB)
    np.testing.assert_array_equal(photo.alpha, alpha)


def test_gray_with_alpha(tmp_path):
    photo = read(tmp_path, odd.encoded(RGB[..., :2].copy(), "PNG"))
    np.testing.assert_array_equal(photo.rgb, RGB[..., [0, 0, 0]])
    np.testing.assert_array_equal(photo.alpha, RGB[..., 1])


def test_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (4, 2), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    photo = read(tmp_path, odd.encoded(image, "PNG", transparency=0))
    assert photo.rgb[0, 0].tolist() == [255, 0, 0]
    assert photo.rgb[1, 1].tolist() == [0, 255, 0]
    assert photo.alpha is not None
    assert photo.alpha[0].tolist() == [0, 255, 255, 255]


def test_rgb_with_a_transparent_colour(tmp_path):
    data = odd.encoded(RGB, "PNG", transparency=tuple(int(v) for v in RGB[3, 5]))
    photo = read(tmp_path, data)
    np.testing.assert_array_equal(photo.alpha, np.where((RGB[3, 5] == RGB).all(-1), 0, 255))


def test_16_bit_rgb_png_keeps_the_high_bytes_and_says_so(tmp_path):
    photo = read(tmp_path, odd.png_rgb16(RGB))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.warnings == ["reduced_to_8_bit"]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_the_high_bytes_and_says_so(tmp_path, name):
    wide = RGB[..., 0].astype(np.uint16) * 256 + 77
    photo = read(tmp_path, odd.encoded(Image.fromarray(wide), name))
    np.testing.assert_array_equal(photo.rgb, RGB[..., [0, 0, 0]])
    assert photo.warnings == ["reduced_to_8_bit"]


def test_float_tiff_is_refused(tmp_path):
    data = odd.encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF")
    assert reason(tmp_path, data) == "unsupported_format"


def test_cmyk_without_a_profile_is_read_and_said(tmp_path):
    photo = read(tmp_path, odd.cmyk_file(RGB, "TIFF"))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.warnings == ["cmyk_without_profile"]


def test_cmyk_jpeg_has_the_right_colours(tmp_path):
    photo = read(tmp_path, odd.cmyk_file(RGB, "JPEG", quality=100, subsampling=0))
    assert np.abs(photo.rgb.astype(int) - RGB).mean() < 2


def test_icc_profile_is_applied(tmp_path):
    """Exchanged primaries exchange red and green, up to the rounding of the profile's curves."""
    photo = read(tmp_path, odd.encoded(RGB, "PNG", icc_profile=odd.swapped_profile()))
    assert photo.warnings == []
    assert np.abs(photo.rgb.astype(int) - RGB[..., [1, 0, 2]]).max() <= 2


def test_srgb_profile_changes_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = read(tmp_path, odd.encoded(RGB, "PNG", icc_profile=srgb))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.warnings == []


def test_broken_profile_is_said(tmp_path):
    photo = read(tmp_path, odd.encoded(RGB, "PNG", icc_profile=b"nonsense" * 30))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.warnings == ["icc_unusable"]


def test_profile_of_another_colour_space_is_said(tmp_path):
    photo = read(
        tmp_path, odd.encoded(RGB[..., 0].copy(), "PNG", icc_profile=odd.swapped_profile())
    )
    assert photo.warnings == ["icc_of_another_colour_space"]


@pytest.mark.parametrize("name", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_frame_only_and_said(tmp_path, name):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    options = {"lossless": True} if name == "WEBP" else {}
    photo = read(
        tmp_path, odd.encoded(frames[0], name, save_all=True, append_images=frames[1:], **options)
    )
    assert photo.rgb[0, 0].tolist() == [200, 0, 0]
    assert photo.warnings == ["first_frame_only"]


def test_second_picture_behind_a_jpeg(tmp_path):
    pictures = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    data = odd.encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    photo = read(tmp_path, data)
    assert photo.format == "JPEG"
    assert photo.warnings == ["first_frame_only"]
    assert np.abs(photo.rgb.astype(int) - RGB).mean() < 8


def test_one_pixel_is_a_photo(tmp_path):
    assert read(tmp_path, odd.encoded(RGB[:1, :1].copy(), "PNG")).rgb.shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_cut_files_are_named(tmp_path, name, part):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = odd.encoded(noise, name)
    assert reason(tmp_path, data[: int(len(data) * part)]) in ("truncated", "corrupt")


def test_cut_jpeg_is_truncated(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert reason(tmp_path, odd.encoded(noise, "JPEG")[:-40]) == "truncated"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_an_image"),
        (b"\x00", "not_an_image"),
        (b"hello, I am text", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unsupported_format"),
        (b"%PDF-1.7\n", "unsupported_format"),
        (b"8BPS\x00\x01", "unsupported_format"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "unsupported_format"),
        (b"\xff\xd8\xff\xe0", "corrupt"),
        (odd.bomb_header(), "too_large"),
        (odd.text_bomb(RGB), "too_large"),
        (odd.many_scans(RGB), "too_large"),
        (odd.raw_png(1_000_000, 1, 8, 0, b"\x00" * 1_000_001), "too_large"),
        (odd.raw_png(0, 0, 8, 2, b""), "corrupt"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:8]),
)
def test_refusals_have_a_reason(tmp_path, data, expected):
    assert reason(tmp_path, data) == expected


def test_limits_are_checked_before_decoding(tmp_path):
    data = odd.encoded(RGB, "PNG")
    assert reason(tmp_path, data, Limits(max_pixels=40 * 60 - 1)) == "too_large"
    assert reason(tmp_path, data, Limits(max_side=59)) == "too_large"
    assert reason(tmp_path, data, Limits(max_bytes=len(data) - 1)) == "too_large"
    assert read_photo(tmp_path / "bad.jpg", Limits(max_pixels=40 * 60, max_side=60)).rgb.any()


def test_an_ordinary_progressive_jpeg_passes_the_scan_limit(tmp_path):
    assert read(tmp_path, odd.encoded(RGB, "JPEG", progressive=True)).format == "JPEG"


def test_what_is_not_a_file_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, expected in (
        ("pipe.jpg", "unreadable"),
        ("link.jpg", "unreadable"),
        ("folder.jpg", "unreadable"),
        ("absent.jpg", "not_found"),
    ):
        with pytest.raises(ImageError) as caught:
            read_photo(tmp_path / name)
        assert caught.value.reason == expected


def test_damaged_exif_does_not_cost_the_photo(tmp_path):
    photo = read(tmp_path, odd.encoded(RGB, "PNG", exif=b"Exif\x00\x00II*\x00" + b"\xff" * 40))
    np.testing.assert_array_equal(photo.rgb, RGB)
    assert photo.warnings == ["metadata_damaged"]


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    """300 damaged files of all formats: each is read or refused with a reason, nothing else."""
    rng = np.random.default_rng(7)
    names = ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"]
    sources = [odd.encoded(RGB, name) for name in names]
    refused, reasons = 0, set()
    for trial in range(300):
        data = bytearray(sources[trial % len(names)])
        for place in rng.integers(0, len(data), 1 + trial % 12):
            data[place] ^= 1 << int(rng.integers(8))
        try:
            assert read(tmp_path, bytes(data)).rgb.dtype == np.uint8
        except ImageError as error:
            reasons.add(error.reason)
            refused += 1
    assert refused > 30
    known = {"corrupt", "truncated", "too_large", "not_an_image", "unsupported_format"}
    assert reasons <= known


def test_tiff_that_points_at_itself_ends(tmp_path):
    data = bytearray(odd.encoded(RGB, "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * entries, first)
    np.testing.assert_array_equal(read(tmp_path, bytes(data)).rgb, RGB)
