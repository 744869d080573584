"""Tar and zip files that are hostile, damaged or cut: nothing of them gets further than a note."""

import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from batch_archives import listed, reason, refused, special, tar_of, zip_of
from fr_deploy.batch.archives import list_members
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.names import Notes
from fr_deploy.errors import ImageError
from fr_deploy.settings import Limits


def test_hostile_tar_members(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "t.tar",
        ("../../up.jpg", b"x"),
        ("a/../../up2.jpg", b"x"),
        ("/etc/abs.jpg", b"x"),
        (special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("hard.jpg", tarfile.LNKTYPE, "../x"), b""),
        (special("null.jpg", tarfile.CHRTYPE), b""),
        (special("pipe.jpg", tarfile.FIFOTYPE), b""),
        ("d/" * 64 + "deep.jpg", b"x"),
        ("x" * 252 + ".jpg", b"x"),
        ("good.jpg", b"good"),
        ("empty.jpg", b""),
        ("big.jpg", b"x" * 100),
    )
    items, notes = listed(path)
    assert [item.name for item in items] == ["t.tar/good.jpg", "t.tar/empty.jpg", "t.tar/big.jpg"]
    assert refused(notes) == [
        ("up.jpg", "unsafe_name"),
        ("up2.jpg", "unsafe_name"),
        ("abs.jpg", "unsafe_name"),
        ("soft.jpg", "not_a_file"),
        ("hard.jpg", "not_a_file"),
        ("null.jpg", "not_a_file"),
        ("pipe.jpg", "not_a_file"),
        ("deep.jpg", "too_deep"),
        ("x" * 252 + ".jpg", "name_too_long"),
    ]
    assert Fetcher().fetch(items[0])[0] == b"good"
    assert reason(items[1]) == "not_an_image"
    assert reason(items[2], Limits(max_bytes=99)) == "too_large"


def test_hostile_zip_members(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("soft.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = zip_of(
        tmp_path / "t.zip",
        ("../../up.jpg", b"x"),
        ("/etc/abs.jpg", b"x"),
        (link, b"/etc/passwd"),
        ("bomb.jpg", bytes(5_000_000)),
        ("good.jpg", b"good"),
        ("flat.bmp", bytes(900_000)),  # an honest white page shrinks as much, below 1 MiB
    )
    items, notes = listed(path)
    assert [item.name for item in items] == ["t.zip/good.jpg", "t.zip/flat.bmp"]
    reasons = [("up.jpg", "unsafe_name"), ("abs.jpg", "unsafe_name")]
    assert refused(notes) == [*reasons, ("soft.jpg", "not_a_file"), ("bomb.jpg", "bomb")]
    assert Fetcher().fetch(items[1])[0] == bytes(900_000)


def test_encrypted_and_other_methods_are_named(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "t.zip", ("secret.jpg", b"x" * 99))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 8] |= 1
    path.write_bytes(data)
    assert refused(listed(path)[1]) == [("secret.jpg", "encrypted")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("lzma.jpg", b"x" * 99)
    assert refused(listed(path)[1]) == [("lzma.jpg", "unsupported_archive")]


def test_a_zip_that_understates_its_sizes(tmp_path: Path) -> None:
    """The directory says 10 bytes, the data unpack to 50 MB."""
    path = zip_of(tmp_path / "t.zip", ("liar.jpg", bytes(50_000_000)), ("next.jpg", b"x" * 2000))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = struct.pack("<L", 10)
    path.write_bytes(data)
    items, notes = listed(path)
    assert notes.refused == 0
    assert reason(items[0]) == "corrupt"
    assert Fetcher().fetch(items[1])[0] == b"x" * 2000


def test_damaged_zip_data(tmp_path: Path) -> None:
    photo = os.urandom(5000)
    path = zip_of(tmp_path / "t.zip", ("a.jpg", photo), packed=False)
    (item,), _ = listed(path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert reason(item) == "corrupt"  # the CRC
    path.write_bytes(data[:2000])
    assert reason(item) == "truncated"
    path.write_bytes(b"")
    assert reason(item) == "changed"
    packed = zip_of(tmp_path / "p.zip", ("a.jpg", photo))
    (item,), _ = listed(packed)
    data = bytearray(packed.read_bytes())
    data[35:60] = b"\xff" * 25
    packed.write_bytes(data)
    assert reason(item) in ("changed", "corrupt")


def test_archives_cut_anywhere(tmp_path: Path) -> None:
    """Members before the cut are found, and it is said that something lacks; no member without its data."""
    members = [(f"{n}.jpg", os.urandom(700)) for n in range(4)]
    for make, name, end in ((tar_of, "t.tar", 4 * 1536 + 512), (zip_of, "t.zip", None)):
        path = make(tmp_path / name, *members)
        data = path.read_bytes()
        cut = tmp_path / f"cut-{name}"
        for length in [*range(0, end or len(data), 97), 1536, 2048, 3072]:
            cut.write_bytes(data[:length])
            items, notes = listed(cut)
            assert len(items) == (min(4, (length + 324) // 1536) if end else 0)
            assert notes.refused == 1
            for item in items:
                assert Fetcher().fetch(item)[0] == dict(members)[item.member or ""]
        assert listed(path)[1].refused == 0


def test_damaged_bytes_anywhere(tmp_path: Path) -> None:
    members = [(f"{n}/é{n}.jpg", bytes([65 + n]) * 700) for n in range(3)]
    reasons: set[str] = set()
    for path in (tar_of(tmp_path / "t.tar", *members), zip_of(tmp_path / "t.zip", *members)):
        data = path.read_bytes()
        for position in range(0, min(len(data), 6000), 23):
            changed = bytearray(data)
            changed[position] ^= 0x91
            path.write_bytes(changed)
            for item in listed(path)[0]:
                try:
                    Fetcher().fetch(item)
                except ImageError as error:
                    reasons.add(error.reason)
    assert reasons <= {"changed", "corrupt", "truncated", "not_an_image"}
    assert len(reasons) > 1


def raw_header(name: bytes, size: int, kind: bytes) -> bytes:
    """A tar header that says what it likes."""
    field = b"\x80" + size.to_bytes(11, "big") if size >= 0 else b"\xff" * 12
    head = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + field + b"0" * 11 + b"\0")
    head += b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    head += bytes(512 - len(head))
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def test_tar_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    good = raw_header(b"good.jpg", 3, b"0") + b"abc".ljust(512, b"\0")
    # Ten gigabytes of names: a sparse file, so that only the size is huge.
    for kind in (b"x", b"g", b"L", b"K"):
        path.write_bytes(good + raw_header(b"huge", 10**10, kind))
        os.truncate(path, 2 * 10**10)
        items, notes = listed(path)
        assert [item.name for item in items] == ["t.tar/good.jpg"]
        assert refused(notes) == [("t.tar", "corrupt")]
    path.write_bytes(good + raw_header(b"back.jpg", -1, b"0") + good)
    items, notes = listed(path)
    assert refused(notes) == [("t.tar", "corrupt")]
    assert all(item.member == "good.jpg" for item in items)
    # Names of names of names.
    chain = raw_header(b"x", 0, b"x") * 5000
    path.write_bytes(good + chain + good)
    assert refused(listed(path)[1]) == [("t.tar", "corrupt")]
    path.write_bytes(good + raw_header(b"last.jpg", 10**6, b"0") + b"x" * 999)
    assert refused(listed(path)[1]) == [("last.jpg", "truncated")]


def test_a_zip_directory_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, 10**9, 0, 0)
    with path.open("wb") as file:
        file.truncate(10**9)
        file.seek(10**9)
        file.write(end)
    assert refused(listed(path)[1]) == [("t.zip", "corrupt")]


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fr_deploy.batch.archives.MAX_MEMBERS", 5)
    path = tar_of(tmp_path / "t.tar", *((f"{n}.jpg", b"x") for n in range(9)))
    notes = Notes()
    assert len(list(list_members(str(path), notes))) == 5
    assert refused(notes) == [("t.tar", "too_many_members")]


def test_refusals_are_counted_but_not_all_kept(tmp_path: Path) -> None:
    names = (special(f"{n}.jpg", tarfile.SYMTYPE, "x") for n in range(1500))
    _, notes = listed(tar_of(tmp_path / "t.tar", *((name, b"") for name in names)))
    assert (len(notes.refusals), notes.refused) == (1000, 1500)
