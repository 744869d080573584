"""Outputs as files: no file of others is replaced, and nothing leaves the destination."""

import os
import shutil
from pathlib import Path

import pytest

from batch_records import Disk, finished
from batch_sinks import ODD, files, parts, place, tree
from fr_deploy.batch.sinks import TreeSink
from fr_deploy.errors import ResourceError

__all__ = ["parts"]  # a fixture


def test_odd_names_are_placed_as_they_are(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    for index, name in enumerate(ODD):
        outcome = place(sink, parts, index, name, data=name.encode("utf-8", "surrogateescape"))
        assert (outcome.status, outcome.outputs[0].path) == ("restored", name), outcome.message
    found = files(tmp_path / "out")
    assert found == {name: name.encode("utf-8", "surrogateescape") for name in ODD}
    assert not files(parts)


@pytest.mark.parametrize(
    "path",
    [
        *("../x.png", "a/../../x.png", "/x.png", "a//x.png", "", ".", "..", "a/./x.png", "x\0.png"),
        *(".fr-deploy/ledger.jsonl", "./.fr-deploy/run.json"),
    ],
)
def test_nothing_leaves_the_destination(tmp_path: Path, parts: Path, path: str) -> None:
    outcome = place(tree(tmp_path), parts, 0, path)
    assert (outcome.status, outcome.reason, outcome.outputs) == ("failed", "unwritable", [])
    assert "not a place below the destination" in outcome.message
    assert list((tmp_path / "out").iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"out", "parts"}


def test_a_file_of_others_is_not_replaced(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    outcome = place(sink, parts, 1, "b.png", "a.png", "c.png", data=b"new!")
    assert (outcome.status, outcome.reason) == ("failed", "exists")
    assert "a.png" in outcome.message
    assert "--overwrite" in outcome.message
    assert files(tmp_path / "out") == {"a.png": b"mine"}


def test_a_file_of_the_same_bytes_is_taken(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a.png").write_bytes(b"same")
    assert place(sink, parts, 1, "a.png", data=b"same").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"same"}
    assert not files(parts)


def test_a_link_in_the_place_is_not_followed(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"same")
    (tmp_path / "out" / "a.png").symlink_to(victim)
    (tmp_path / "out" / "b.png").symlink_to(tmp_path / "nowhere")
    assert place(sink, parts, 1, "a.png", data=b"same").reason == "exists"
    assert place(sink, parts, 2, "b.png", data=b"x").reason == "exists"
    assert victim.read_bytes() == b"same"
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path, overwrite=True)
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert place(sink, parts, 1, "a.png", data=b"new").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"new"}


def test_an_output_that_was_taken_back_is_replaced(tmp_path: Path, parts: Path) -> None:
    (tmp_path / "out").mkdir()
    sink = TreeSink(tmp_path / "out", is_ours=lambda index: index == 1)
    for index in (1, 2):
        (tmp_path / "out" / f"{index}.png").write_bytes(b"rotten")
    assert place(sink, parts, 1, "1.png", data=b"new").status == "restored"
    assert place(sink, parts, 2, "2.png", data=b"new").reason == "exists"


def test_a_file_where_a_folder_must_be(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    (tmp_path / "out" / "a").write_bytes(b"file")
    (tmp_path / "out" / "b.png").mkdir()
    for index, path in enumerate(["a/b.png", "a/b/c/d.png", "b.png"]):
        outcome = place(sink, parts, index, path)
        assert outcome.status == "failed"
        assert outcome.reason == ("exists" if path == "b.png" else "unwritable")
    assert place(sink, parts, 9, "x" * 300 + ".png").reason == "unwritable"
    assert place(sink, parts, 10, "fine.png").status == "restored"


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path, parts: Path) -> None:
    sink = tree(tmp_path)
    assert place(sink, parts, 0, "a/b/c.png").status == "restored"
    shutil.rmtree(tmp_path / "out" / "a")
    assert place(sink, parts, 1, "a/b/d.png").status == "restored"
    assert list(files(tmp_path / "out")) == ["a/b/d.png"]


def test_a_file_system_without_links(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    sink = tree(tmp_path)
    assert place(sink, parts, 0, "a.png", data=b"1").status == "restored"
    assert place(sink, parts, 1, "a.png", data=b"2").reason == "exists"
    assert place(sink, parts, 2, "a.png", data=b"1").status == "restored"
    assert files(tmp_path / "out") == {"a.png": b"1"}


@pytest.mark.parametrize(("number", "fails"), [(5, 2), (116, 2), (5, 3), (28, 1), (30, 1)])
def test_errors_of_the_file_system(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: int
) -> None:
    """EIO and ESTALE may pass, twice; ENOSPC and EROFS end the run, and nothing of the item stays."""
    left, real = [fails], os.link

    def link(a: Path, b: Path) -> None:
        if b.name == "b.png" and left[0]:
            left[0] -= 1
            raise OSError(number, "Broken")
        real(a, b)

    monkeypatch.setattr(os, "link", link)
    sink = tree(tmp_path)
    if number in (5, 116) and fails < 3:
        assert place(sink, parts, 0, "a.png", "b.png").status == "restored"
        return
    with pytest.raises(ResourceError, match="resume the run"):
        place(sink, parts, 0, "a.png", "b.png")
    assert not files(tmp_path / "out")


def test_each_folder_is_synced_once(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = tree(tmp_path)
    place(sink, parts, 0, "a/x.png")
    entries = [e for i in range(1, 9) for e in sink.add(finished(parts, i, f"a/{i}.png"))]
    disk = Disk(monkeypatch)
    for entry in entries:
        sink.place(entry)
    sink.sync()
    assert disk.syncs == 1
    place(sink, parts, 20, "b/c/x.png")  # made: out, b and c change
    assert disk.syncs == 4
