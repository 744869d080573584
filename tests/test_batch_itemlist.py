"""A run's list: frozen, parted into shards, or growing; what was changed or torn in it is noticed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_records import MODEL, begin, item, run_of, run_to_end
from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import shard_of
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.state import State
from fr_deploy.errors import ModelError


@pytest.mark.parametrize("how", ["changed", "shorter", "gone"])
def test_a_changed_list_is_noticed(tmp_path: Path, how: str) -> None:
    with begin(tmp_path, 3) as state:
        data = state.items_path.read_bytes()
        if how == "gone":
            state.items_path.unlink()
        else:
            new = data.replace(b"photo-1", b"photo-9") if how == "changed" else data[:-1]
            state.items_path.write_bytes(new)
        with pytest.raises(ModelError, match="put it back" if how == "gone" else "was changed"):
            state.check_list()


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"index":1,"x":1}\n', b'{"index":1,\n'])
def test_a_damaged_line_of_the_list(tmp_path: Path, line: bytes) -> None:
    with begin(tmp_path, 1) as state:
        with state.items_path.open("ab") as file:
            file.write(line)
        with pytest.raises(ModelError, match="damaged line"):
            list(state.read_list())


def test_an_error_of_the_listing_leaves_no_run(tmp_path: Path) -> None:
    def items() -> Iterator[Item]:
        yield item(0)
        raise PermissionError(13, "Permission denied", "/photos")

    with State(tmp_path) as state:
        with pytest.raises(PermissionError):
            state.write_list(items())
        assert state.run is None
        assert {path.name for path in tmp_path.iterdir()} == {"lock"}


def test_reading_from_a_place_and_without_what_is_done(tmp_path: Path) -> None:
    with begin(tmp_path, 10) as state:
        assert [i.index for i in state.read_list(7)] == [7, 8, 9]
        assert [i.index for i in state.read_list(2, skip={3, 5, 6, 7, 8}.__contains__)] == [2, 4, 9]
        assert next(iter(state.read_list())).index == 0


def test_items_keep_all_fields(tmp_path: Path) -> None:
    odd = Item(0, "a\udcff\n'\u202e#b", "x.tar", "a.png", "m\udcff", 512, 77, 10**18)
    with State(tmp_path) as state:
        state.write_list([odd])
        state.create(Plan(), {}, sources=["x"], destination=tmp_path)
        assert list(state.read_list()) == [odd]


def test_shards_part_the_list(tmp_path: Path) -> None:
    count, seen = 0, set[int]()
    names = set[str | None]()
    for number in range(3):
        with begin(tmp_path, 100, shard=(number, 3)) as state:
            mine = list(state.read_list())
            assert all(shard_of(i.id, 3) == number for i in mine)
            assert mine == [item(i.index) for i in mine]
            count += state.items
            seen |= {i.index for i in mine}
            names.add(run_of(state).names_sha256)
            assert (run_of(state).whole_items, run_of(state).shard) == (100, [number, 3])
            assert state.destination == tmp_path.resolve()
            state.check_list()
    assert (count, len(seen), len(names)) == (100, 100, 1)


def grow(folder: Path) -> State:
    state = State(folder)
    if state.run is None:
        state.create(Plan(), MODEL, sources=["in"], destination=folder)
    return state


def test_a_list_that_grows(tmp_path: Path) -> None:
    with grow(tmp_path) as state:
        assert run_of(state).growing
        assert run_of(state).list_sha256 is None
        assert state.append_items([item(0), item(1)]) == 2
        assert state.append_items([]) == 2
        assert state.append_items([item(2)]) == 3
        with pytest.raises(ValueError, match="next item's index is 3"):
            state.append_items([item(2)])
        assert [i.index for i in state.read_list(1)] == [1, 2]
        state.check_list()
    with grow(tmp_path) as state:
        assert state.items == 3
        state.append_items([item(3)])
        assert list(state.read_list(3)) == [item(3)]
        assert list(state.read_list()) == [item(i) for i in range(4)]
    with State(tmp_path, write=False) as state:
        assert state.items == 4
        with pytest.raises(ValueError, match="opened to be read"):
            state.append_items([item(4)])


def test_a_torn_line_of_a_growing_list_is_dropped(tmp_path: Path) -> None:
    with grow(tmp_path) as state:
        state.append_items([item(i) for i in range(3)])
        whole = state.items_path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) - len(lines[2]), len(whole), 7):
        (tmp_path / "items.jsonl").write_bytes(whole[:length])
        with grow(tmp_path) as state:
            assert state.items == 2
            state.append_items([item(2)])
        assert (tmp_path / "items.jsonl").read_bytes() == whole


LIST = """
import sys
from pathlib import Path
from batch_records import begin
with begin(Path(sys.argv[1]), int(sys.argv[2])) as state:
    count = sum(1 for _ in state.read_list())
    state.check_list()
assert count == int(sys.argv[2])
print(next(x.split()[1] for x in open("/proc/self/status") if x.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    used = [int(run_to_end(LIST, tmp_path / str(n), n)) for n in (10_000, 200_000)]
    assert used[1] - used[0] < 4096
