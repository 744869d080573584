"""The short way for JPEG decodes to the bytes of the long one, and leaves to Pillow what is odd."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import odd_inputs as odd
from fr_deploy import image_decode
from fr_deploy.errors import ImageError
from fr_deploy.image_decode import decode_photo
from fr_deploy.image_jpeg import plain_jpeg, turned
from fr_deploy.images import Photo, read_photo
from fr_deploy.settings import Limits

DEMO = Path(__file__).parents[1] / "assets" / "demo" / "full-length.jpg"


def picture(height: int, width: int) -> NDArray[np.uint8]:
    with Image.open(DEMO) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def long_way(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Photo:
    with monkeypatch.context() as patched:
        patched.setattr(image_decode, "plain_jpeg", lambda _: None)
        return decode_photo(io.BytesIO(data))


def both_ways(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Photo, Photo]:
    return decode_photo(io.BytesIO(data)), long_way(data, monkeypatch)


def assert_same(a: Photo, b: Photo) -> None:
    np.testing.assert_array_equal(a.rgb, b.rgb)
    assert (a.format, a.exif, a.warnings) == (b.format, b.exif, b.warnings)
    assert a.rgb.flags.c_contiguous
    assert a.rgb.flags.writeable


@pytest.mark.parametrize("size", [(1, 1), (17, 33), (243, 161)], ids=str)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("chroma", ["4:2:0", "4:2:2", "4:4:4"])
def test_pixels_are_those_of_pillow(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], progressive: bool, chroma: str
) -> None:
    options = {"quality": 88, "subsampling": chroma, "progressive": progressive}
    data = odd.encoded(picture(*size), "JPEG", **options)
    pixels = plain_jpeg(data)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert_same(*both_ways(data, monkeypatch))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_turning_is_that_of_pillow(monkeypatch: pytest.MonkeyPatch, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera maker"
    data = odd.encoded(picture(40, 60), "JPEG", exif=exif.tobytes())
    short, long = both_ways(data, monkeypatch)
    assert_same(short, long)
    assert b"Camera maker" in short.exif


def test_what_is_no_number_turns_nothing() -> None:
    pixels = picture(4, 6)
    assert turned(pixels, (6,)) is pixels
    assert turned(pixels, 0) is pixels


@pytest.mark.parametrize(
    "options",
    [
        {"keep_rgb": True},
        {"icc_profile": odd.swapped_profile()},
        {"icc_profile": b"nonsense" * 30},
        {"exif": b"Exif\x00\x00II*\x00" + b"\xff" * 40},
        {"restart_marker_rows": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_odd_files_are_read_alike(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    assert_same(*both_ways(odd.encoded(picture(40, 60), "JPEG", **options), monkeypatch))


def test_gray_and_cmyk_are_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = odd.encoded(picture(40, 60)[..., 0].copy(), "JPEG")
    assert_same(*both_ways(gray, monkeypatch))
    assert_same(*both_ways(odd.cmyk_file(picture(40, 60), "JPEG"), monkeypatch))


def test_a_second_picture_is_passed_over_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Image.fromarray(picture(40, 60))
    data = odd.encoded(first, "MPO", save_all=True, append_images=[first.rotate(180)])
    short, long = both_ways(data, monkeypatch)
    assert_same(short, long)
    assert short.warnings == ["first_frame_only"]


def test_damage_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads on where libjpeg only warns, and refuses what is cut."""
    data = odd.encoded(picture(240, 320), "JPEG")
    broken = data[:4000] + b"\xff\xd9" + data[4002:]
    assert plain_jpeg(broken) is None
    assert_same(*both_ways(broken, monkeypatch))
    with pytest.raises(ImageError) as caught:
        decode_photo(io.BytesIO(data[:-300]))
    assert caught.value.reason == "truncated"


def test_flipped_bytes_are_read_alike_or_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 damaged files; some are plain still, some are read by Pillow alone, some by neither."""
    rng = np.random.default_rng(11)
    source = odd.encoded(picture(60, 80), "JPEG", progressive=False)
    plain = refused = 0
    for _ in range(200):
        data = bytearray(source)
        for place in rng.integers(0, len(data), 2):
            data[place] ^= 1 << int(rng.integers(8))
        try:
            short, long = both_ways(bytes(data), monkeypatch)
        except ImageError:
            refused += 1
            with pytest.raises(ImageError):
                long_way(bytes(data), monkeypatch)
            continue
        assert_same(short, long)
        plain += plain_jpeg(bytes(data)) is not None
    assert plain > 20
    assert refused > 5
    assert plain + refused < 200


def test_bytes_and_file_are_read_alike(tmp_path: Path) -> None:
    data = odd.encoded(picture(40, 60), "PNG")
    photo = decode_photo(io.BytesIO(data), Limits())
    assert_same(photo, read_photo(odd.write(tmp_path, "a.png", data)))
