"""Photos from an object store: one in memory stands in for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fr_deploy.batch.cloud import list_objects
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.item import Item
from fr_deploy.batch.listing import list_items
from fr_deploy.errors import ImageError, ResourceError
from fr_deploy.settings import Limits


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What s3:// leads to."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    monkeypatch.setattr("fr_deploy.batch.cloud._system", lambda scheme: Bare(memory))
    yield memory
    memory.store.clear()


class Bare:
    """fsspec's memory with names as object stores have them: without a slash at the beginning."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def info(self, path: str) -> dict[str, Any]:
        return self._renamed(self._memory.info(path))

    def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
        return [self._renamed(entry) for entry in self._memory.ls(path, detail=detail)]

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        return self._memory.cat_file(path, start=start, end=end)

    def _renamed(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {**entry, "name": entry["name"].lstrip("/")}


def test_objects_below_a_prefix(store: Any, tmp_path: Path) -> None:
    keys = ["p/b.jpg", "p/a/2 %20?#.jpg", "p/a/1.png", "p/notes.txt", "p/.h/x.jpg", "p/s.tar"]
    for key in [*keys, "other.jpg"]:
        store.pipe_file(f"/bucket/{key}", key.encode())
    listing = list_items(["s3://bucket/p/", "gs://bucket/other.jpg", "s3://bucket/absent"])
    items = list(listing)
    assert [item.name for item in items] == ["b.jpg", "a/1.png", "a/2 %20?#.jpg", "other.jpg"]
    assert items[2].place == "s3://bucket/p/a/2 %20?#.jpg"
    assert listing.notes.ignored == 2
    reasons = [refusal.reason for refusal in listing.notes.refusals]
    assert reasons == ["unsupported_archive", "not_found"]
    fetcher = Fetcher(Limits(max_bytes=20))
    assert [fetcher.fetch(item)[0] for item in items[:3]] == [
        b"p/b.jpg",
        b"p/a/1.png",
        b"p/a/2 %20?#.jpg",
    ]
    (tmp_path / "m.csv").write_text("path\ns3://bucket/p/b.jpg\n")
    (item,) = list_items([str(tmp_path / "m.csv")])
    assert item.name == "bucket/p/b.jpg"
    assert fetcher.fetch(item)[0] == b"p/b.jpg"
    store.pipe_file("/bucket/p/b.jpg", b"another length")
    store.pipe_file("/bucket/p/a/1.png", bytes(100))
    store.rm_file("/bucket/other.jpg")
    found: list[str] = []
    for changed in (items[0], items[1], items[3]):
        with pytest.raises(ImageError) as caught:
            fetcher.fetch(changed)
        found.append(caught.value.reason)
    assert found == ["changed", "changed", "vanished"]
    store.pipe_file("/bucket/p/b.jpg", bytes(100))
    with pytest.raises(ImageError, match="allowed are 20"):
        fetcher.fetch(item)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fr_deploy.batch import cloud

    cloud._system.cache_clear()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ResourceError, match=r"s3fs .*pip install 'fr-deploy\[cloud\]'"):
        list(list_objects("s3://bucket/p"))


def test_faults_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty:
        fault: Exception = RuntimeError("no credentials")
        asked = 0

        def info(self, path: str) -> None:
            raise self.fault

        def cat_file(self, path: str, **limits: int) -> None:
            self.asked += 1
            raise self.fault

    faulty = Faulty()
    monkeypatch.setattr("fr_deploy.batch.cloud._system", lambda scheme: faulty)
    with pytest.raises(ResourceError, match=r"cannot list s3://bucket/p: .*no credentials; see"):
        list(list_items(["s3://bucket/p"]))
    item = Item(0, "a.jpg", "s3://bucket/a.jpg", "a.jpg")
    expected = [
        (faulty.fault, "unreachable", 4),
        (TimeoutError("slow"), "unreachable", 8),
        (PermissionError("no"), "unreadable", 9),
        (OSError(22, "The requested range is not satisfiable"), "unreadable", 10),
        (FileNotFoundError("gone"), "not_found", 11),
    ]
    for fault, code, asked in expected:
        faulty.fault = fault
        with pytest.raises(ImageError) as caught:
            Fetcher().fetch(item)
        assert (caught.value.reason, faulty.asked) == (code, asked)
