"""Archives as they are: thousands of files, bad ones of 30 kinds among them, and names of every sort."""

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import odd_inputs as odd
from batch_cli import FAKE, batch, check_standing, fast, records, results, small_photo

__all__ = ["fast"]  # a fixture

ITEMS = 2000
MORE_KINDS: dict[str, tuple[bytes, set[str]]] = {
    "one byte.jpg": (b"\xff", {"not_an_image"}),
    "page.png": (b"<!doctype html><title>404</title>", {"not_an_image"}),
    "paper.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", {"unsupported_format", "not_an_image"}),
    "layers.jpg": (b"8BPS\x00\x01" + b"\0" * 60, {"unsupported_format", "not_an_image"}),
    "stars.jpg": (b"SIMPLE  =                    T", {"unsupported_format", "not_an_image"}),
    "packed.jpg": (b"PK\x03\x04" + b"\0" * 60, {"unsupported_format", "not_an_image"}),
    "film.jpg": (b"\x00\x00\x00\x20ftypisom" + b"\0" * 40, {"unsupported_format", "not_an_image"}),
    "next.jxl": (b"\xff\x0a" + b"\x7f" * 40, {"unsupported_format", "not_an_image"}),
    "zeros.jpg": (bytes(5000), {"not_an_image"}),
    "noise.jpg": (np.random.default_rng(5).bytes(5000), {"not_an_image"}),
    "utf16.png": ("text".encode("utf-16"), {"not_an_image"}),
    "icon.png": (b"\x00\x00\x01\x00\x01\x00" + b"\0" * 40, {"unsupported_format", "not_an_image"}),
}
ODD_NAMES = [
    "a b.png", " lead.png", "trail .png", "tab\tname.png", "line\nbreak.png", "cr\rname.png",
    "'single'.png", '"double".png', "back\\slash.png", "-dash.png", "--option.png", "$HOME.png",
    "`cmd`.png", "$(reboot).png", ";rm -rf.png", "&amp;.png", "<img src=x onerror=alert(1)>.png",
    "%s%n.png", "100%.png", "#hash.png", "a?b.png", "star*.png", "[0].png", "{a,b}.png", "~.png",
    "!bang.png", "e\u0301.png", "\u00e9 nfc.png", "\u65e5\u672c\u8a9e.png", "\U0001f642.png",
    "\u05e9\u05dc\u05d5\u05dd.png", "\u202egnp.exe.png", "\u200b.png", "Case.png", "case.png",
    "x" * 251 + ".png", "\U0001f642" * 62 + ".png", "a...png", "double.jpg.png",
    "\udcff\udcfe bytes.png", "con.png", "\x1b[31mred.png",
]  # fmt: skip


def bad_kinds() -> dict[str, tuple[bytes, set[str]]]:
    """Name, bytes, and the reasons of which one must be given."""
    rgb = odd.gradient(64, 64)
    known = {name: (data, {reason}) for name, (data, reason) in odd.bad_files(rgb).items()}
    cut = {
        f"cut {percent} of {name}": (
            (data := odd.encoded(rgb, kind))[: len(data) * percent // 100],
            {"truncated", "corrupt", "not_an_image"},
        )
        for kind, name in (("PNG", "png.png"), ("WEBP", "webp.webp"), ("JPEG", "jpeg.jpg"))
        for percent in (10, 50)
    }
    return known | cut | MORE_KINDS


def write_archive(source: Path, bad: dict[str, tuple[bytes, set[str]]]) -> list[str]:
    """Good ones in folders of 100, a bad one of each kind somewhere among them; returns the good ones' names."""
    good = [f"{index // 100:03}/photo {index:05}.png" for index in range(ITEMS - len(bad))]
    for index, name in enumerate(good):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(small_photo(index))
    for index, (name, (data, _)) in enumerate(bad.items()):
        (source / f"{index % 20:03}" / name).write_bytes(data)
    return good


@pytest.mark.slow
def test_two_thousand_files_with_thirty_kinds_of_bad_ones(fast: Path, record_property: Any) -> None:
    source, out, bad = fast / "in", fast / "out", bad_kinds()
    assert len(bad) == 30
    good = write_archive(source, bad)
    os.mkfifo(source / "000" / "pipe.png")
    (source / "001" / "folder.png").mkdir()
    os.symlink("nowhere", source / "002" / "dangling.png")
    done = batch(source, out, "--aligned", "--device", FAKE, "--progress", "none")
    assert done.returncode == 3, done.stderr
    found = {record.name: record for record in check_standing(out)}
    for index, (name, (_, reasons)) in enumerate(bad.items()):
        record = found.pop(f"{index % 20:03}/{name}")
        assert record.reason in reasons, f"{name}: {record.reason} {record.message}"
    assert found.pop("000/pipe.png").status == "failed"
    assert found.pop("002/dangling.png").status == "failed"
    assert found.keys() == set(good)
    assert {record.status for record in found.values()} == {"restored"}
    assert results(out).keys() == set(good)
    record_property(
        "figure", next(line for line in done.stdout.splitlines() if " a second" in line)
    )


def test_odd_names_survive(fast: Path) -> None:
    source, out = fast / "in", fast / "out"
    source.mkdir()
    for index, name in enumerate(ODD_NAMES):
        (source / name).write_bytes(small_photo(index))
    assert len(set(os.listdir(source))) == len(ODD_NAMES) >= 40
    report = fast / "report.html"
    done = batch(
        source, out, "--aligned", "--device", FAKE, "--progress", "none", "--report", report
    )
    assert done.returncode == 0, done.stderr
    assert {record.name for record in check_standing(out)} == set(ODD_NAMES)
    assert set(os.listdir(out)) == {*ODD_NAMES, ".fr-deploy"}
    for index, name in enumerate(ODD_NAMES):  # nobody's result lies under another one's name
        picture = odd.Image.open(out / name)
        expected = odd.Image.open(source / name)
        assert picture.size == expected.size, index
    assert batch("verify", out).returncode == 0
    text = report.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "\u202e" not in text


def test_members_of_an_archive_stay_in_the_destination(fast: Path) -> None:
    names = ["../escape.png", "/rooted.png", "a/../../b.png", "plain.png"]
    with tarfile.open(fast / "photos.tar", "w") as tar:
        for index, name in enumerate(names):
            path = fast / f"{index}.png"
            path.write_bytes(small_photo(index))
            info = tarfile.TarInfo(name)
            info.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(info, file)
    inner = fast / "deep" / "out"
    done = batch(fast / "photos.tar", inner, "--aligned", "--device", FAKE, "--progress", "none")
    assert "unsafe_name" in done.stderr, done.stderr
    assert all(path.is_relative_to(inner) for path in (fast / "deep").rglob("*.png"))
    assert not (fast / "escape.png").exists()
    assert len(records(inner)) >= 1
