"""What a user names becomes a list of items: the same each time, in bounded memory, without a clash."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fr_deploy.batch.collisions import check_collisions, folds_case
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.item import Item
from fr_deploy.batch.listing import list_items
from fr_deploy.batch.names import Naming, Notes
from fr_deploy.batch.watch import Known, watch_items
from fr_deploy.errors import ImageError, UsageError
from fr_deploy.settings import Limits


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def named(names: Iterable[str | Path], **options: Any) -> list[str]:
    return [item.name for item in list_items([str(name) for name in names], **options)]


def made(number: int, **changes: Any) -> Item:
    item = Item(
        number, f"d{number % 997}/{number}.jpg", "/nowhere/x", f"d{number % 997}/{number}.jpg"
    )
    return replace(item, **changes)


def test_a_folder_keeps_its_tree_in_order(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "in", "b.jpg", "a/2.PNG", "a/1.tif", "notes.txt", ".h.jpg", ".git/x.png"
    )
    listing = list_items([str(root)], ext="png", suffix="_r")
    items = list(listing)
    assert [item.index for item in items] == [0, 1, 2]
    assert [item.name for item in items] == ["b.jpg", "a/1.tif", "a/2.PNG"]
    assert [item.output for item in items] == ["b_r.png", "a/1_r.png", "a/2_r.png"]
    assert items[0].place == str(root / "b.jpg")
    assert (items[0].size, items[0].mtime_ns) == (5, (root / "b.jpg").stat().st_mtime_ns)
    assert (listing.notes.ignored, listing.notes.refused) == (2, 0)
    assert list(listing) == items  # again, and counted anew
    assert listing.notes.ignored == 2


def test_files_patterns_and_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/x/1.jpg", "in/y/1.jpg", "in/y/2.png", "odd.xyz", "pack.tar.gz", "empty/.x")
    monkeypatch.chdir(tmp_path)
    assert named(["in/**/*.jpg"]) == ["x/1.jpg", "y/1.jpg"]
    assert named(["in/?"]) == ["x/1.jpg", "y/1.jpg", "y/2.png"]
    assert named(["odd.xyz", "odd.xyz", "in/x/1.jpg"]) == ["odd.xyz", "1.jpg"]
    listing = list_items(["none/*.jpg", "absent.jpg", "pack.tar.gz", "empty"])
    assert list(listing) == []
    reasons = [refusal.reason for refusal in listing.notes.refusals]
    assert reasons == ["not_found", "not_found", "unsupported_archive", "empty_folder"]


def test_results_inside_the_sources_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "out/a.jpg", "out/.fr-deploy/parts/b.jpg", "state/c.jpg")
    monkeypatch.chdir(tmp_path)
    assert named([tmp_path], outside=[tmp_path / "out", tmp_path / "state"]) == ["a.jpg"]
    assert named(["**/*.jpg"], outside=tmp_path / "out") == ["a.jpg", "state/c.jpg"]


def clash(items: list[Item], destination: Path | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_collisions(lambda: iter(items), destination)


def test_two_of_one_name(tmp_path: Path) -> None:
    root = touch(tmp_path, "one/a.jpg", "two/a.jpg", "one/b.jpg", "two/b.jpg", "one/c.jpg")
    items = list(list_items([str(root / "one"), str(root / "two")]))
    clash(
        items, tmp_path / "out", r"2 names .* first a\.jpg: .*one/a\.jpg and .*two/a\.jpg; .*name"
    )
    clash([*items[:3], items[2]], None, "1 names .*twice; leave one of them out")


def test_two_with_one_output(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "b.gif", "b.png", "c.jpg")
    items = list(list_items([str(root)]))
    clash(items, None, r"1 outputs .*more than once, first b\.png from b\.gif and b\.png; .*column")
    items = list(list_items([str(root)], ext="jpg"))
    clash(items, tmp_path / "out", "leave out --ext")


def test_an_output_that_is_a_folder_of_another(tmp_path: Path) -> None:
    items = [made(0, output="x/a.jpg"), made(1), made(2, output="x/a.jpg/deep/b.jpg")]
    clash(
        items, tmp_path, r"a file and a folder at once, first x/a\.jpg from .*0\.jpg, below which"
    )


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.jpg", "b.jpg", "sub/c.jpg")
    items = list(list_items([str(root)]))
    assert check_collisions(lambda: iter(items), tmp_path / "out") == 3
    assert check_collisions(lambda: iter(items), None) == 3
    clash(items, root, r"3 outputs are inputs .*--suffix _restored")
    (tmp_path / "link").symlink_to(root)
    clash(items, tmp_path / "link", "would be overwritten")
    # A link among the inputs, to what the run would replace.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jpg").symlink_to(root / "b.jpg")
    linked = list(list_items([str(tmp_path / "other")]))
    clash(linked, root, "would be overwritten")
    # A folder of the destination that leads to the inputs.
    (tmp_path / "out2").mkdir()
    (tmp_path / "out2" / "sub").symlink_to(root / "sub")
    clash(items, tmp_path / "out2", r"first sub/c\.jpg")


def test_names_that_differ_in_case_where_that_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [made(0, output="A.jpg"), made(1, output="a.jpg")]
    assert folds_case(tmp_path / "not" / "yet") is False
    assert list(tmp_path.iterdir()) == []
    assert check_collisions(lambda: iter(items), tmp_path) == 2
    monkeypatch.setattr("fr_deploy.batch.collisions.folds_case", lambda folder: True)
    clash(items, tmp_path, r"from 0|from d0/0\.jpg and d1/1\.jpg")


def test_clashes_are_found_in_little_memory(tmp_path: Path) -> None:
    def many(count: int, clashes: int = 0) -> Callable[[], Iterator[Item]]:
        def begin() -> Iterator[Item]:
            yield from (made(number) for number in range(count))
            yield from (made(count + n, output=made(7 * n).output) for n in range(clashes))

        return begin

    tracemalloc.start()
    assert check_collisions(many(20_000), tmp_path) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5e6  # the items would take 12 MB; 0.5 MB are remembered folders
    with pytest.raises(UsageError, match=r"^300 outputs .* first d0/0\.jpg from"):
        check_collisions(many(5_000, 300), None)


LISTING = """
import os, sys
from pathlib import Path
from fr_deploy.batch.listing import list_items

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

for count, _ in enumerate(list_items([sys.argv[1]]), 1):
    if count == 1:
        before = most = resident()
    if count % 10_000 == 0:
        most = max(most, resident())
print(count, most - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["tree", "tar", "csv"])
def test_200_000_items_are_listed_in_little_memory(
    tmp_path: Path, source: str, record_property: Callable[[str, object], None]
) -> None:
    """Kept as items they would take 120 MB."""
    path = tmp_path / f"source.{source}"
    names = (f"{n // 1000:03}/photo-{n % 1000:06}.jpg" for n in range(200_000))
    if source == "tree":
        for folder in range(200):
            (path / f"{folder:03}").mkdir(parents=True)
        for name in names:
            os.mknod(path / name)
    elif source == "tar":
        with tarfile.open(path, "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
                vars(tar)["members"].clear()
    else:
        path.write_text("path\n" + "\n".join(names))
    # In a process of its own: one that has run other tests grows by itself, once by 16 MiB.
    run = [sys.executable, "-c", LISTING, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) == 200_000
    record_property("figure", f"200,000 items of a {source} listed: {float(grown):.1f} MiB")
    assert float(grown) < 4


def test_files_are_read_as_they_were_listed(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg")
    (root / "e.jpg").write_bytes(b"")
    items = {item.name[0]: item for item in list_items([str(root)])}
    (root / "b.jpg").write_bytes(b"longer than it was")
    times = (root / "c.jpg").stat().st_mtime_ns + 1
    os.utime(root / "c.jpg", ns=(times, times))
    (root / "d.jpg").unlink()
    fetcher = Fetcher(Limits(max_bytes=30))
    data, digest = fetcher.fetch(items["a"])
    assert data == b"a.jpg"
    assert digest == hashlib.sha256(b"a.jpg").hexdigest()
    reasons = {"b": "changed", "c": "changed", "d": "vanished", "e": "not_an_image"}
    for name, reason in reasons.items():
        with pytest.raises(ImageError) as caught:
            fetcher.fetch(items[name])
        assert caught.value.reason == reason
    with pytest.raises(ImageError, match="has 5 bytes; allowed are 4"):
        Fetcher(Limits(max_bytes=4)).fetch(items["f"])


def test_a_disk_that_stutters_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = touch(tmp_path / "in", "a.jpg")
    (item,) = list_items([str(root)])
    faults = [OSError(5, "Input/output error"), OSError(116, "Stale file handle")]
    opened = os.open

    def stutter(*args: Any, **options: Any) -> int:
        if faults and args[0] == item.place:
            raise faults.pop()
        return opened(*args, **options)

    monkeypatch.setattr(os, "open", stutter)
    assert Fetcher().fetch(item)[0] == b"a.jpg"
    assert faults == []
    faults += [OSError(5, "Input/output error")] * 5
    with pytest.raises(ImageError, match="tried 4 times") as caught:
        Fetcher().fetch(item)
    assert caught.value.reason == "unreadable"
    assert len(faults) == 1


def test_watching_waits_until_a_file_rests(tmp_path: Path) -> None:
    now = [0.0]
    known, notes = Known(), Notes()
    root = touch(tmp_path / "in", "a.jpg", ".b.jpg", "c.jpg.part", "d.tmp", "out/x.jpg")
    looks = watch_items(
        root, known, 2.0, outside=root / "out", naming=Naming(), notes=notes, clock=lambda: now[0]
    )

    def look(after: float) -> list[str]:
        now[0] += after
        return [item.name for item in next(looks)]

    assert look(0) == []
    assert look(1) == []
    touch(root, "sub/grows.jpg")
    assert look(1) == ["a.jpg"]
    (root / "sub/grows.jpg").write_bytes(b"more")
    assert look(2) == []  # it has grown since the look before
    os.rename(root / "c.jpg.part", root / "c.jpg")
    assert look(2) == ["sub/grows.jpg"]
    assert look(2) == ["c.jpg"]
    assert look(2) == []
    touch(root, "c.gif", "c.png")
    assert look(0) == []
    assert look(2) == ["c.gif"]  # c.png would be its output, too
    assert [(r.name, r.reason) for r in notes.refusals] == [("c.png", "collision")]
    assert look(2) == []
    assert known.next_index == 4


def test_watching_begins_where_a_list_ended(tmp_path: Path) -> None:
    root = touch(tmp_path / "in", "a.jpg", "b.jpg")
    known = Known()
    for item in list_items([str(root)]):
        known.add(item)
    with tarfile.open(root / "t.tar", "w") as tar:
        tar.add(root / "a.jpg", "x/a.jpg")
    touch(root, "new.jpg")
    looks = watch_items(root, known, 0.0)
    found = [item for _ in range(3) for item in next(looks)]
    assert [(item.index, item.name) for item in found] == [(2, "new.jpg"), (3, "t.tar/x/a.jpg")]
    assert Fetcher().fetch(found[1])[0] == b"a.jpg"
    for destination in (root, tmp_path):
        with pytest.raises(UsageError, match="name another destination"):
            watch_items(root, known, 0.0, outside=destination)
