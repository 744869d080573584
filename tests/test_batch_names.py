"""Forty names nobody likes: each listed, each with an output of its own below the destination, each read again."""

import json
import os
import socket
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePath

import pytest

from fr_deploy.batch.collisions import check_collisions
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.item import Item
from fr_deploy.batch.listing import list_items
from fr_deploy.batch.names import Naming, name_of_path, name_of_url, relative_name
from fr_deploy.errors import ImageError, UsageError

NFC, NFD = (unicodedata.normalize(form, "Zoë Ångström.jpg") for form in ("NFC", "NFD"))
ODD = [
    "with spaces.jpg",
    " leading space.jpg",
    "trailing space .jpg",
    "line\nbreak.jpg",
    "carriage\rreturn.jpg",
    "tab\there.jpg",
    "bell\x07escape\x1b[31m.jpg",
    'double"quote.jpg',
    "single'quote.jpg",
    "back`tick.jpg",
    "back\\slash.jpg",
    "C:\\drive.jpg",
    "-leading-dash.jpg",
    "--ext=png.jpg",
    "$HOME.jpg",
    "$(reboot).jpg",
    "semi;colon&and|pipe.jpg",
    "<script>alert(1)</script>".replace("/", "_") + ".jpg",
    "percent%20%2e%2e%2f.jpg",
    "question?.jpg",
    "hash#tag.jpg",
    "star*.jpg",
    "[bracket].jpg",
    "{brace,s}.jpg",
    "~home.jpg",
    "colon:.jpg",
    "dots...jpg",
    "no.more.than.five.dots.jpg",
    NFC,
    NFD,
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈.jpg",
    "rtl \u202egpj.exe.jpg",
    "עברית العربية.jpg",
    "日本語 한국어.jpg",
    "zero\u200bwidth.jpg",
    "Case.jpg",
    "case.jpg",
    "CASE.JPG",
    "stem.jpg",
    "stem.jpeg",
    "stem.webp",
    "stem.tif",
    "x" * 251 + ".jpg",
    "é" * 125 + "y.jpg",
    os.fsdecode(b"latin\xe9\xff.jpg"),
    os.fsdecode(b"\xed\xa0\x80 half a pair.jpg"),
    "CON.jpg",
    "null.jpg",
    "folder.jpg/inside.jpg",
]
LEFT_OUT = [".hidden.jpg", ".folder/in.jpg", "notes.txt", "a.jpg.part", "b.jpg.crdownload"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd") / "in"
    for name in ODD + LEFT_OUT:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    (root / "loop").symlink_to(root)
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    (root / "link.jpg").symlink_to("stem.jpg")
    os.mkfifo(root / "fifo.jpg")
    return root


def again(items: list[Item]) -> Iterator[Item]:
    """As a frozen list gives them back."""
    for line in [json.dumps(asdict(item)) for item in items]:
        yield Item(**json.loads(line))


def test_odd_names_are_listed_once_and_read_again(odd: Path, tmp_path: Path) -> None:
    assert len(ODD) > 40
    listing = list_items([str(odd)])
    items = list(again(list(listing)))
    special = {"loop.jpg", "broken.jpg", "link.jpg", "fifo.jpg"}
    assert {item.name for item in items} == set(ODD) | special
    assert listing.notes.refusals == []
    assert listing.notes.ignored == 4  # hidden folders are not entered
    assert check_collisions(lambda: again(items), tmp_path / "out") == len(items)
    assert len({item.id for item in items}) == len(items)
    fetcher = Fetcher()
    for item in items:
        if item.name not in special:
            assert fetcher.fetch(item)[0] == os.fsencode(item.name)


def test_outputs_are_below_the_destination(odd: Path, tmp_path: Path) -> None:
    for item in list_items([str(odd)]):
        written = tmp_path / "out" / item.output
        assert ".." not in PurePath(item.output).parts
        written.parent.mkdir(parents=True, exist_ok=True)
        with written.open("xb") as file:  # of its own: it must not be there yet
            file.write(b"x")
        assert written.resolve().is_relative_to((tmp_path / "out").resolve())


@pytest.mark.timeout(60)
def test_what_is_no_file_fails_and_never_blocks(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        expected = {"fifo.jpg": "a FIFO", "loop.jpg": "symbolic links", "broken.jpg": "nowhere.jpg"}
        items = {item.name: item for item in list_items([str(odd), str(tmp_path / "socket.jpg")])}
        for name, text in {**expected, "socket.jpg": "a socket"}.items():
            with pytest.raises(ImageError, match=text) as caught:
                Fetcher().fetch(items[name])
            assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/a.jpg", "unsafe_name"),
        ("a/../../b.jpg", "unsafe_name"),
        ("..", "unsafe_name"),
        ("", "unsafe_name"),
        ("./.", "unsafe_name"),
        ("a\0b.jpg", "unsafe_name"),
        ("\ud83d.jpg", "unsafe_name"),
        ("x" * 252 + ".jpg", "name_too_long"),
        ("é" * 126 + ".jpg", "name_too_long"),
        ("/".join(["x" * 200] * 16), "name_too_long"),
        ("a/" * 64 + "b.jpg", "too_deep"),
    ],
)
def test_names_that_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        relative_name(name)
    assert caught.value.reason == reason


def test_names_are_tidied() -> None:
    assert relative_name("./a//b/./c.jpg") == "a/b/c.jpg"
    assert relative_name("a/" * 63 + "b.jpg").count("/") == 63
    assert name_of_path("/srv/photos/a.jpg") == "srv/photos/a.jpg"
    assert name_of_path("../x/./y/../a.jpg") == "x/a.jpg"
    assert name_of_url("https://example.com:8443/a%20b/c.jpg?w=1#x") == "example.com_8443/a b/c.jpg"
    assert name_of_url("s3://bucket/a%20b?.jpg") == "bucket/a%20b?.jpg"
    for url in ("https://user:secret@example.com/a.jpg", "http://", "http://[::1/a.jpg"):
        with pytest.raises(ImageError) as caught:
            name_of_url(url)
        assert caught.value.reason == "bad_url"
        assert "secret" not in str(caught.value)


def test_names_of_outputs() -> None:
    assert Naming(suffix="_restored").output("a/b.JPG") == "a/b_restored.JPG"
    assert Naming(ext="webp").output("a/b.heic") == "a/b.heic.webp"
    with pytest.raises(ImageError, match="259 bytes"):
        Naming().output("x" * 250 + ".heic")
    with pytest.raises(ImageError, match="allowed are 245"):
        Naming(spare=10).output("x" * 242 + ".jpg")
    with pytest.raises(ImageError, match="is ours"):
        Naming().output(".fr-deploy/items.jpg")
    for output in ("../a.jpg", "/etc/a.jpg", "a.txt", "a"):
        with pytest.raises(ImageError):
            Naming().checked(output)
    with pytest.raises(UsageError, match="allowed are jpg"):
        Naming(ext="gif")
    with pytest.raises(UsageError, match="part of a file name"):
        Naming(suffix="/../x")


def test_a_tree_that_goes_on_is_cut(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(100):
        folder /= "d"
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"x")
    listing = list_items([str(tmp_path)])
    assert max(item.name.count("/") for item in listing) == 63
    assert [refusal.reason for refusal in listing.notes.refusals] == ["too_deep"]
