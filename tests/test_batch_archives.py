"""Photos in tar and zip files: found, and read where they lie."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from batch_archives import listed, reason, refused, tar_of, zip_of
from fr_deploy.batch.collisions import check_collisions
from fr_deploy.batch.fetch import OPEN_ARCHIVES, Fetcher
from fr_deploy.batch.listing import list_items
from fr_deploy.errors import UsageError

LONG = "/".join(["long" * 20] * 3) + "/é.jpg"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_file_in_each_format(tmp_path: Path, form: int) -> None:
    names = ["./a/1.jpg", "b.PNG", LONG if form != tarfile.USTAR_FORMAT else "c/é.jpg"]
    more = [
        ("a/1.json", b"{}"),
        (".hid/x.jpg", b"x"),
        ("__MACOSX/a.jpg", b"x"),
        ("a/._1.jpg", b"x"),
    ]
    members = [(name, name.encode() * 300) for name in names]
    path = tar_of(tmp_path / "pack.tar", *members, *more, format=form)
    items, notes = listed(path)
    assert [item.name for item in items] == [f"pack.tar/{n.removeprefix('./')}" for n in names]
    assert [item.output for item in items] == [f"pack/{n.removeprefix('./')}" for n in names]
    assert (notes.ignored, notes.refused) == (4, 0)
    fetcher = Fetcher()
    for item, (_, data) in reversed(list(zip(items, members, strict=True))):
        assert fetcher.fetch(item)[0] == data
    fetcher.close()


@pytest.mark.parametrize("packed", [True, False])
def test_a_zip_file(tmp_path: Path, packed: bool) -> None:
    members = [("a/1.jpg", b"one" * 500), ("é 日本.png", b"two" * 500), ("a\\b.jpg", b"3")]
    path = zip_of(tmp_path / "p.zip", *members, ("a/", b""), ("x.txt", b""), packed=packed)
    items, notes = listed(path)
    assert [item.name for item in items] == [f"p.zip/{name}" for name, _ in members]
    assert items[0].output == "p/a/1.jpg"
    assert (notes.ignored, notes.refused) == (1, 0)
    assert [Fetcher().fetch(item)[0] for item in items] == [data for _, data in members]


class _Pipe(io.RawIOBase):
    """A file that cannot be gone back in: sizes and CRC then follow the data."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


@pytest.mark.parametrize("way", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_file_written_into_a_pipe(tmp_path: Path, way: int) -> None:
    contents = {f"{n}.jpg": os.urandom(1000 * n) + b"tail" * 50_000 * (n % 2) for n in range(1, 5)}
    with zipfile.ZipFile(_Pipe(tmp_path / "p.zip"), "w", way) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    items, _ = listed(tmp_path / "p.zip")
    assert {item.member: Fetcher().fetch(item)[0] for item in items} == contents


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_that_comes_twice_stops_the_run(tmp_path: Path, kind: str) -> None:
    members = [("a.jpg", b"1"), ("a.jpg", b"2")]
    path = tmp_path / f"t.{kind}"
    tar_of(path, *members) if kind == "tar" else zip_of(path, *members)
    items, _ = listed(path)
    with pytest.raises(UsageError, match=r"first t\.\w+/a\.jpg: .* twice"):
        check_collisions(lambda: iter(items), tmp_path / "out")


def test_an_archive_that_changed_since(tmp_path: Path) -> None:
    for make, name in ((tar_of, "t.tar"), (zip_of, "t.zip")):
        path = tmp_path / name
        make(path, ("a.jpg", b"a" * 900), ("b.jpg", b"b" * 900))
        items, _ = listed(path)
        make(path, ("b.jpg", b"b" * 900), ("a.jpg", b"a" * 900))
        assert [reason(item) for item in items] == ["changed", "changed"]
        path.unlink()
        assert reason(items[0]) == "vanished"


def test_the_last_archives_stay_open_and_are_not_pickled(tmp_path: Path) -> None:
    paths = [tar_of(tmp_path / f"{n}.tar", (f"{n}.jpg", b"%d" % n)) for n in range(7)]
    items = list(list_items([str(path) for path in paths]))
    fetcher = Fetcher()

    def opened() -> int:
        targets = [
            os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
        ]
        return sum(target.endswith(".tar") for target in targets)

    for _ in range(3):
        assert [fetcher.fetch(item)[0] for item in items] == [b"%d" % n for n in range(7)]
        assert opened() == OPEN_ARCHIVES
    copy = pickle.loads(pickle.dumps(fetcher))
    assert copy.fetch(items[0])[0] == b"0"
    copy.close()
    fetcher.close()
    assert opened() == 0


def test_archives_in_folders(tmp_path: Path) -> None:
    (tmp_path / "in/x").mkdir(parents=True)
    tar_of(tmp_path / "in/x/s-0.tar", ("a.jpg", b"1"))
    zip_of(tmp_path / "in/x/s-1.zip", ("a.jpg", b"2"))
    (tmp_path / "in/x/s-2.tgz").write_bytes(b"x")
    os.mkfifo(tmp_path / "in/x/fifo.tar")
    (tmp_path / "in/x/text.tar").write_bytes(b"no tar file, only words" * 40)
    items, notes = listed(tmp_path / "in")
    assert [item.output for item in items] == ["x/s-0/a.jpg", "x/s-1/a.jpg"]
    reasons = [
        ("fifo.tar", "unreadable"),
        ("s-2.tgz", "unsupported_archive"),
        ("text.tar", "corrupt"),
    ]
    assert refused(notes) == reasons


def test_a_crc_that_follows_without_its_mark(tmp_path: Path) -> None:
    data = b"photo" * 100
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(data) + packer.flush()
    after = struct.pack("<3L", zlib.crc32(data), len(body), len(data))
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 8, 8, 0, 0, 0, 0, 0, 5, 0) + b"a.jpg"
    numbers = (20, 20, 8, 8, 0, 0, zlib.crc32(data), len(body), len(data), 5, 0, 0, 0, 0, 0, 0)
    central = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *numbers) + b"a.jpg"
    front = local + body + after
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(front), 0)
    (tmp_path / "t.zip").write_bytes(front + central + end)
    (item,), _ = listed(tmp_path / "t.zip")
    assert Fetcher().fetch(item)[0] == data
