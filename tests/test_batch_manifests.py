"""Lists of photos: CSV, JSONL and names from standard input; a bad row is named by its line."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.listing import Listing, list_items
from fr_deploy.errors import ImageError, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/b.jpg", "with, comma.jpg", "line\nbreak.jpg", 'quote".jpg'):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    (tmp_path / "in" / os.fsdecode(b"\xff.jpg")).write_bytes(b"odd")
    return tmp_path / "in"


def listing_of(folder: Path, name: str, content: str | bytes, **options: Any) -> Listing:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return list_items([str(folder / name)], **options)


def refused(listing: Listing) -> list[str]:
    return [f"{Path(r.name).name}: {r.reason}" for r in listing.notes.refusals]


def test_csv(photos: Path) -> None:
    text = (
        "\ufeffid, Path ,name,output\r\n"
        "1,a.jpg,,\r\n"
        "2,sub/b.jpg,people/Bea.jpg,\r\n"
        '3,"with, comma.jpg",,elsewhere/c.png\r\n'
        "\r\n"
        '4,"line\nbreak.jpg"\r\n'
        '5,"quote"".jpg",,\r\n'
    )
    listing = listing_of(photos, "list.csv", text, ext="webp")
    items = list(listing)
    assert [(item.name, item.output) for item in items] == [
        ("a.jpg", "a.webp"),
        ("people/Bea.jpg", "people/Bea.webp"),
        ("with, comma.jpg", "elsewhere/c.png"),
        ("line\nbreak.jpg", "line\nbreak.webp"),
        ('quote".jpg', 'quote".webp'),
    ]
    assert listing.notes.refused == 0
    assert Fetcher().fetch(items[1])[0] == b"sub/b.jpg"


def test_jsonl(photos: Path) -> None:
    rows = [{"path": "a.jpg", "score": 1}, {"uri": str(photos / "sub/b.jpg"), "name": "b.jpg"}]
    text = "\n".join(json.dumps(row) for row in rows) + "\n\n" + '{"path": "\\udcff.jpg"}'
    listing = listing_of(photos, "list.jsonl", text)
    assert [item.name for item in listing] == ["a.jpg", "b.jpg", "\udcff.jpg"]
    assert listing.notes.refused == 0


def test_bytes_that_are_no_text(photos: Path) -> None:
    (item,) = listing_of(photos, "list.csv", b"path\n\xff.jpg\n")
    assert Fetcher().fetch(item)[0] == b"odd"
    (item,) = listing_of(photos, "list.jsonl", b'{"path": "\xff.jpg"}\n')
    assert Fetcher().fetch(item)[0] == b"odd"


def test_bad_csv_rows_are_named_by_line(photos: Path) -> None:
    text = (
        "path,uri,name,output\n"
        "a.jpg\n"
        ",,only a name,\n"
        "a.jpg,https://example.com/a.jpg,,\n"
        "a.jpg,,,,,\n"
        '"a".jpg\n'
        "sub/b.jpg,,../../up.jpg,\n"
        "sub/b.jpg,,b.jpg,/etc/b.jpg\n"
        "sub/b.jpg,,b.jpg,b.txt\n"
        "sub,,b.jpg,\n"
        "ftp://example.com/a.jpg\n"
        "http://example.com/a.jpg\n"
        "absent.jpg\n"
    )
    listing = listing_of(photos, "list.csv", text)
    items = list(listing)
    assert [item.name for item in items] == ["a.jpg", "absent.jpg"]
    assert refused(listing) == [
        "list.csv line 3: bad_row",
        "list.csv line 4: bad_row",
        "list.csv line 5: bad_row",
        "list.csv line 6: bad_row",
        "list.csv line 7: unsafe_name",
        "list.csv line 8: unsafe_name",
        "list.csv line 9: unsupported_format",
        "list.csv line 10: bad_row",
        "list.csv line 11: unsupported_scheme",
        "list.csv line 12: http_not_allowed",
    ]
    with pytest.raises(ImageError, match="no such file") as caught:  # it has its outcome, too
        Fetcher().fetch(items[1])
    assert caught.value.reason == "not_found"


def test_bad_json_rows_are_named_by_line(photos: Path) -> None:
    rows = ["[1]", '{"path": 7}', '{"path": ', '{"name": "x.jpg"}', "[" * 100_000]
    rows += ['{"path": "a\\u0000b.jpg"}', '{"path": "\\ud83d.jpg"}', "null", '{"path": "a.jpg"}']
    listing = listing_of(photos, "list.ndjson", "\n".join(rows))
    assert [item.name for item in listing] == ["a.jpg"]
    reasons = ["bad_row"] * 5 + ["unsafe_name"] * 2 + ["bad_row"]
    assert refused(listing) == [f"list.ndjson line {n}: {r}" for n, r in enumerate(reasons, 1)]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "list.csv",
            "file,score\na.jpg,1\n",
            "must have a column path or uri; found 'file, score'",
        ),
        ("list.csv", "", "is empty"),
        ("list.csv", '"path', "its first line is no CSV"),
        ("list.csv", "path\n" + "x" * 2**20, "line 2 has more than"),
        ("list.jsonl", " " * 2**20 + "{}", "line 1 has more than"),
    ],
)
def test_what_is_no_manifest_ends_the_run(photos: Path, name: str, content: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        list(listing_of(photos, name, content))


def test_an_open_quote_does_not_swallow_the_list(photos: Path) -> None:
    rows = "".join(f"{n}.jpg\n" for n in range(30_000))
    listing = listing_of(photos, "list.csv", f'path\n0.jpg\n"{rows}')
    assert len(list(listing)) > 10_000
    assert listing.notes.refused == 1
    assert "field larger than" in listing.notes.refusals[0].message


def test_manifests_of_folders_and_archives(photos: Path) -> None:
    import tarfile

    with tarfile.open(photos / "t.tar", "w") as tar:
        tar.add(photos / "a.jpg", "m/a.jpg")
    listing = listing_of(photos, "list.csv", "path\nsub\nt.tar\n../in/a.jpg\n")
    assert [item.name for item in listing] == ["sub/b.jpg", "t.tar/m/a.jpg", "in/a.jpg"]


@pytest.mark.parametrize("end", ["\n", "\0", "\r\n"])
def test_names_from_standard_input(photos: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.chdir(photos)
    names = ["a.jpg", "sub/b.jpg", f"{photos}/a.jpg", "", "\udcff.jpg"]
    names += ["line\nbreak.jpg"] if end == "\0" else []
    source = io.BytesIO(os.fsencode(end.join(names)))
    listing = list_items(["-"], stdin=source)
    expected = [name.lstrip("/") for name in names if name]
    assert [item.name for item in listing] == expected
    assert [item.name for item in listing] == expected  # it was kept
    assert all(Fetcher().fetch(item)[0] for item in listing)


def test_standard_input_may_be_gone_through_twice_at_once(tmp_path: Path) -> None:
    names = b"\n".join(b"%d.jpg" % n for n in range(300_000))  # several pieces
    listing = list_items(["-"], stdin=io.BytesIO(names))
    first = iter(listing)
    assert next(first).name == "0.jpg"
    again = [item.index for item, _ in zip(listing, range(3), strict=False)]
    assert again == [0, 1, 2]
    assert next(first).name == "1.jpg"
    with pytest.raises(UsageError, match="name 2 is longer"):
        list(list_items(["-"], stdin=io.BytesIO(b"a.jpg\n" + b"x" * 3 * 2**20)))
