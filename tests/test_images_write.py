"""Writing: exact where the format allows, tagged, without the place, and never half a file."""

import errno
import io
import os
import stat
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

import odd_inputs as odd
from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ImageError, ResourceError
from fr_deploy.image_pixels import srgb_profile
from fr_deploy.images import SUFFIXES, Photo, read_photo, write_photo
from fr_deploy.png import write_png

RGB = odd.gradient()
ALPHA = RGB[..., 2].copy()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (40, 60), (257, 3), (600, 2)])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_png_writer_is_lossless(shape, with_alpha):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    alpha = rng.integers(0, 256, shape).astype(np.uint8) if with_alpha else None
    out = io.BytesIO()
    write_png(out, rgb, alpha)
    with Image.open(out) as image:
        image.verify()
    with Image.open(out) as image:
        expected = rgb if alpha is None else np.dstack([rgb, alpha])
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert image.info["srgb"] == 0


def test_png_writer_takes_a_view_that_is_not_contiguous():
    out = io.BytesIO()
    write_png(out, RGB[::-1, ::2])
    np.testing.assert_array_equal(np.asarray(Image.open(out)), RGB[::-1, ::2])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_reads_back(tmp_path, suffix):
    path = tmp_path / f"photo{suffix.upper()}"
    write_photo(path, Photo(RGB, "PNG"), quality=100)
    again = read_photo(path)
    assert again.format == SUFFIXES[suffix]
    assert again.warnings == []
    limit = 0 if again.format in ("PNG", "TIFF", "BMP") else 3
    assert np.abs(again.rgb.astype(int) - RGB).mean() <= limit


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_alpha_survives(tmp_path, suffix):
    if suffix not in SUFFIXES:
        pytest.skip("this Pillow has no AVIF")
    write_photo(tmp_path / f"a{suffix}", Photo(RGB, "PNG", ALPHA), quality=100)
    again = read_photo(tmp_path / f"a{suffix}")
    assert again.alpha is not None
    assert np.abs(again.alpha.astype(int) - ALPHA).max() <= 4


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_laid_over_white_where_it_cannot_be_kept(tmp_path, suffix):
    rgb = np.zeros((16, 16, 3), np.uint8)
    alpha = np.full((16, 16), 55, np.uint8)
    codes = write_photo(tmp_path / f"a{suffix}", Photo(rgb, "PNG", alpha))
    assert codes == ["alpha_laid_over_white"]
    assert np.abs(read_photo(tmp_path / f"a{suffix}").rgb.astype(int) - 200).max() <= 1


def test_alpha_follows_an_enlarged_photo():
    photo = Photo(RGB, "PNG", ALPHA).with_rgb(np.zeros((80, 120, 3), np.uint8))
    assert photo.alpha is not None
    assert photo.alpha.shape == (80, 120)
    assert abs(int(photo.alpha[41, 61]) - int(ALPHA[20, 30])) <= 4


def test_jpeg_is_444_and_tagged_srgb(tmp_path):
    write_photo(tmp_path / "a.jpg", Photo(RGB, "PNG"))
    with Image.open(tmp_path / "a.jpg") as image:
        assert {tuple(layer[1:3]) for layer in image.layer} == {(1, 1)}
        assert b"sRGB" in image.info["icc_profile"].replace(b"\x00", b"")


def test_the_profile_does_not_tell_the_time():
    """Or two processes would write different files of one photo."""
    first = srgb_profile()
    srgb_profile.cache_clear()
    time.sleep(1.1)
    assert srgb_profile() == first
    assert ImageCms.getProfileName(ImageCms.ImageCmsProfile(io.BytesIO(first))).startswith("sRGB")


def with_metadata() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Camera maker"
    exif[0x8298] = "Someone"
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    exif.get_ifd(0x8769)[0x927C] = b"private maker notes"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 30.0)
    stored = np.ascontiguousarray(odd.STORED_FROM_UPRIGHT[6](RGB))
    return odd.encoded(stored, "JPEG", exif=exif.tobytes(), quality=95, xmp=b"<gps>48.8</gps>")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_is_kept_without_the_place(tmp_path, suffix):
    photo = read_photo(odd.write(tmp_path, "in.jpg", with_metadata()))
    out = tmp_path / f"out{suffix}"
    write_photo(out, photo)
    with Image.open(out) as image:
        exif = image.getexif()
        assert exif[0x010F] == "Camera maker"
        assert exif[0x8298] == "Someone"
        assert exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
        assert not exif.get_ifd(0x8825)
        assert exif.get(0x0112, 1) == 1
    assert b"private maker notes" not in out.read_bytes()
    assert b"48.8" not in out.read_bytes()
    assert read_photo(out).rgb.shape == RGB.shape
    assert read_photo(out).exif == photo.exif


def test_unknown_suffix_names_the_allowed_ones(tmp_path):
    with pytest.raises(ImageError, match=r"\.png") as caught:
        write_photo(tmp_path / "a.gif", Photo(RGB, "GIF"))
    assert caught.value.reason == "unsupported_format"
    assert names(tmp_path) == []


def test_a_size_the_format_cannot_hold_leaves_nothing(tmp_path):
    with pytest.raises(ImageError) as caught:
        write_photo(tmp_path / "a.webp", Photo(np.zeros((1, 16384, 3), np.uint8), "PNG"))
    assert caught.value.reason == "unwritable"
    assert names(tmp_path) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    old = tmp_path / "a.png"
    old.write_bytes(b"old")

    def write_half():
        with atomic_write(old) as file:
            file.write(b"new, but then")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert old.read_bytes() == b"old"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_full_disk_at_any_step_leaves_nothing(tmp_path, monkeypatch, call):
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "replace":
        monkeypatch.setattr("pathlib.Path.replace", fail)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match="disk is full"):
        write_photo(tmp_path / "a.png", Photo(RGB, "PNG"))
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_mode_of_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_photo(tmp_path / "a.png", Photo(RGB, "PNG"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        write_photo(tmp_path / "file" / "a.png", Photo(RGB, "PNG"))
    assert caught.value.reason == "unwritable"
