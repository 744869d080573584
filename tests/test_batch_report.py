"""The report of a batch run: capped, escaped, and open in Chromium in under two seconds."""

import io
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import CHROMIUM, NASTY, Page, browser

import odd_inputs as odd
from fr_deploy.batch import pictures as pictures_module
from fr_deploy.batch.item import Item, Record, Status, item_id
from fr_deploy.batch.pictures import MAX_PICTURED, PictureBook, Pictures, jpeg_size
from fr_deploy.batch.report import MAX_ROWS, write_batch_report

__all__ = ["browser"]  # a fixture


def jpeg(rgb: np.ndarray, quality: int = 88) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return out.getvalue()


PHOTO = jpeg(odd.gradient(240, 320)), jpeg(255 - odd.gradient(240, 320))
NOISE = np.random.default_rng(0).integers(0, 40, (240, 320, 3), np.uint8)
HEAVY = jpeg(odd.gradient(240, 320) // 2 + NOISE), jpeg(odd.gradient(240, 320) // 3 + NOISE)
"""27 kB each, as a photo full of detail."""
FACE = jpeg(odd.gradient(160, 160)), jpeg(255 - odd.gradient(160, 160))


def record(index: int, name: str = "", status: Status = "restored", **more: Any) -> Record:
    name = name or f"folder/photo {index}.jpg"
    faces = [{"box": [1, 2, 3, 4], "angle": 20.0 + index % 40, "blend": 1.0}]
    more = {"ms": {"decode": 10.0, "restore": 40.0 + index}, "faces": faces} | more
    return Record(index, item_id(name), name, status, **more)


def write(
    tmp_path: Path, records: list[Record], pictured: int, photo: tuple[bytes, bytes] = PHOTO
) -> str:
    book = Pictures(tmp_path / "pictures.jsonl")
    for one in records[:pictured]:
        book.add(one.id, [photo, FACE])
    book.close()
    path = tmp_path / "report.html"
    facts = {"Model": "lafr-mini", "Device": "cpu & more"}
    write_batch_report(path, iter(records), tmp_path / "pictures.jsonl", facts)
    return path.read_text(encoding="utf-8")


def mixed(count: int) -> list[Record]:
    bad = [
        record(count, NASTY, "failed", reason="corrupt", message="<img src=x onerror=alert(1)>"),
        record(count + 1, status="failed", reason="truncated", message="ends early"),
        record(count + 2, status="no_face", faces=[]),
    ]
    return [record(i, NASTY + str(i) if i == 1 else "") for i in range(count)] + bad


def test_structure(tmp_path: Path) -> None:
    page = Page(write(tmp_path, mixed(6), 4))
    assert len(page.all("article")) == 4
    assert [a["alt"] for a in page.all("img")] == ["before", "after"] * 8
    assert [(a["width"], a["height"]) for a in page.all("img")][:3:2] == [
        ("320", "240"),
        ("160", "160"),
    ]
    assert len(page.all("svg")) == 2
    assert "9" in page.words
    assert "30 to 35" not in page.words
    assert "20 to 25" in page.words
    assert page.words.count("truncated") == 1
    assert sum(a.get("class") == "failed" for a in page.all("tr")) == 4  # by reason, and each


def test_names_and_messages_are_escaped(tmp_path: Path) -> None:
    text = write(tmp_path, mixed(3), 3)
    page = Page(text)
    assert len(page.all("script")) == 1
    assert len(page.all("img")) == 12
    assert "\u202e" not in text
    assert any("<script>alert(1)</script>\"'&\\u202e\\n.jpg" in word for word in page.words)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", text)
    assert "http" not in text.replace("http-equiv", "")


def test_pictures_are_capped_and_kept_over_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_module, "MAX_PICTURED", 3)
    path = tmp_path / "pictures.jsonl"
    for start in (0, 2):  # the second start meets item 2 again
        book = Pictures(path)
        for index in range(start, start + 3):
            book.add(record(index).id, [PHOTO])
        book.close()
        with path.open("ab") as file:
            file.write(b"0badc0de {torn")
    book = PictureBook(path)
    assert len(book) == 3
    assert record(2).id in book
    assert book.pairs(record(0).id)[0].before == PHOTO[0]
    assert book.pairs(record(3).id) == ()
    assert path.read_bytes().count(b"0badc0de") == 1  # the first was dropped


def test_rows_are_capped_then_counted(tmp_path: Path) -> None:
    bad = [record(i, status="failed", reason="x", message="y") for i in range(MAX_ROWS + 5)]
    good = [record(9000 + i) for i in range(MAX_ROWS + 7)]
    page = Page(write(tmp_path, bad + good, 0))
    assert len(page.all("tr")) == 2 * MAX_ROWS + 3
    assert "and 12 more, in the ledger" in page.words


def test_size_of_a_jpeg() -> None:
    assert jpeg_size(PHOTO[0]) == (320, 240)
    assert (
        jpeg_size(b"") == jpeg_size(b"\xff\xd8\xff") == jpeg_size(b"not a picture at all") == (0, 0)
    )


def test_an_item_knows_its_id() -> None:
    assert Item(0, "a.jpg", "/x/a.jpg", "a.jpg").id == item_id("a.jpg")


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_500_pictured_items_open_in_two_seconds(
    browser: Any, tmp_path: Path, record_property: Any
) -> None:
    text = write(tmp_path, mixed(600), MAX_PICTURED, HEAVY)
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    times = []
    for _ in range(3):  # the best of three: other work runs on the machine
        start = time.perf_counter()
        page.goto((tmp_path / "report.html").as_uri(), wait_until="load")
        times.append(time.perf_counter() - start)
    record_property(
        "figure", f"batch report of {len(text) / 1e6:.1f} MB opens in {min(times):.2f} s"
    )
    assert page.locator("article").count() == MAX_PICTURED
    assert errors == []
    assert min(times) < 2
