"""A run's folder: one run at a time, a frozen list, and no resume with anything else than it began with."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batch_records import MODEL, Disk, begin, item, run_to_end, start
from fr_deploy import __version__
from fr_deploy.batch.begun import Begun
from fr_deploy.batch.folder import state_folder
from fr_deploy.batch.item import Item
from fr_deploy.batch.itemlist import shard_of
from fr_deploy.batch.ledger import Tally
from fr_deploy.batch.lock import Holder, Lock, holder_of
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.runfile import Run, read_run
from fr_deploy.batch.state import State
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.inputs import Refusal
from fr_deploy.settings import RestoreOptions

HOLD = """
import sys, time
from pathlib import Path
from fr_deploy.batch.state import State
state = State(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def run_of(state: State) -> Run:
    assert state.run
    return state.run


def test_what_a_run_began_with_is_kept(tmp_path: Path) -> None:
    plan = Plan(RestoreOptions(rotations=(0, 90)), confidence=0.5, ext="png")
    destination = tmp_path / "out"
    with State(state_folder(destination)) as state:
        assert state.run is None
        assert state.write_list(item(i) for i in range(5)) == 5
        refused = [Refusal("a\udcff", "empty_folder", "holds no photo")]
        sources = ["photos", "x\udcff"]
        state.create(plan, MODEL, sources=sources, destination=destination, refusals=refused)
        created = run_of(state)
    with State(state_folder(destination)) as state:
        run = run_of(state)
        assert run == created
        assert run.plan_of() == plan
        assert (run.items, run.sources, run.model) == (5, sources, MODEL)
        assert run.refusals == [vars(refused[0])]
        assert run.fr_deploy == __version__
        assert time.time() - run.created < 100
        assert state.destination == destination.resolve()
        assert list(state.read_list()) == [item(i) for i in range(5)]
        state.check_list()
        state.check_same(plan, MODEL, sink={"kind": "tree"})


def test_a_moved_destination_is_found_again(tmp_path: Path) -> None:
    begin(tmp_path / "out", 1).close()
    (tmp_path / "out").rename(tmp_path / "moved")
    with State(tmp_path / "moved" / ".fr-deploy") as state:
        assert state.destination == (tmp_path / "moved").resolve()


def test_a_state_elsewhere_names_its_destination(tmp_path: Path) -> None:
    with State(tmp_path / "state") as state:
        state.write_list([item(0)])
        state.create(Plan(), MODEL, sources=["s"], destination=tmp_path / "out")
        assert state.destination == (tmp_path / "out").resolve()
        parts = state.part_folder()
    assert parts == tmp_path / "state" / "parts"
    assert parts.is_dir()


def test_parts_lie_where_they_can_be_renamed_from(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system")
    folder = other / f"fr-deploy-test-{os.getpid()}"
    try:
        with State(folder) as state:
            state.write_list([item(0)])
            state.create(Plan(), MODEL, sources=["s"], destination=tmp_path)
            parts = state.part_folder()
            assert parts.parent == tmp_path / ".fr-deploy"
            assert parts.stat().st_dev == tmp_path.stat().st_dev
            assert list(parts.iterdir()) == []
            assert list((folder / "parts").iterdir()) == []
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("plan", "model", "words"),
    [
        (Plan(options=RestoreOptions(blend=0.5)), MODEL, ["plan.options.blend", "1.0", "0.5"]),
        (Plan(confidence=0.7), MODEL, ["plan.confidence", "None", "0.7"]),
        (Plan(), {**MODEL, "unet": "c" * 64}, ["model.unet", "a" * 64, "c" * 64]),
        (Plan(), {"unet": "a" * 64}, ["model.detector", "b" * 64, "None"]),
        (Plan(), {**MODEL, "more": "d"}, ["model.more", "'d'"]),
        (Plan(quality=1, suffix="x"), MODEL, ["plan.suffix", "and 1 more differ"]),
    ],
)
def test_another_plan_or_model_is_refused(
    tmp_path: Path, plan: Plan, model: dict[str, str], words: list[str]
) -> None:
    with begin(tmp_path, 2) as state, pytest.raises(ModelError) as caught:
        state.check_same(plan, model)
    assert caught.value.exit_code == 5
    assert all(word in str(caught.value) for word in [*words, "--force-mixed"])


def test_force_mixed_goes_on_and_notes_it(tmp_path: Path) -> None:
    plan = Plan(confidence=0.7)
    with begin(tmp_path, 2) as state:
        state.check_same(plan, MODEL, force_mixed=True)
    with State(tmp_path / ".fr-deploy") as state:
        state.check_same(plan, MODEL)
        (note,) = run_of(state).mixed
        assert note["fields"] == {"plan.confidence": [None, 0.7]}
        with pytest.raises(ModelError):
            state.check_same(Plan(), MODEL)


def test_another_sink_is_refused(tmp_path: Path) -> None:
    with begin(tmp_path, 1, sink={"kind": "tar", "items": 5}) as state:
        with pytest.raises(ModelError, match=r"sink\.kind"):
            state.check_same(Plan(), MODEL, sink={"kind": "tree"})
        state.check_same(Plan(), MODEL, sink={"kind": "tar", "items": 5})


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    begin(tmp_path, 1).close()
    folder = tmp_path / ".fr-deploy"
    process = start(HOLD, folder)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        holder = holder_of(folder / "lock")
        host = os.uname().nodename
        assert holder == Holder(process.pid, host)
        with pytest.raises(UsageError, match=f"process {process.pid} on {host}"):
            Lock(folder / "lock", wait=0.1)
        with State(folder, write=False) as reader:  # reading needs no lock
            assert reader.items == 1
    finally:
        process.kill()
        process.communicate()
    assert holder_of(folder / "lock") is None
    State(folder).close()


def test_a_lock_is_not_passed_to_children(tmp_path: Path) -> None:
    state = begin(tmp_path, 1)
    child = start(
        "import sys; print('up', flush=True); sys.stdin.read(); import time; time.sleep(60)"
    )
    try:
        state.close()
        assert holder_of(tmp_path / ".fr-deploy" / "lock") is None
    finally:
        child.kill()
        child.communicate()


def test_reading_where_no_run_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        State(tmp_path, write=False)
    assert list(tmp_path.iterdir()) == []
    assert holder_of(tmp_path / "lock") is None


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UsageError, match="out is a file"):
        State(state_folder(tmp_path / "out"))


def test_a_second_list_is_refused(tmp_path: Path) -> None:
    with begin(tmp_path, 1) as state:
        with pytest.raises(UsageError, match="holds a run"):
            state.write_list([])
        with pytest.raises(UsageError, match="holds a run"):
            state.create(Plan(), {}, sources=[], destination=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("[]", "schema is None"),
        ('{"schema": 2}', "schema is 2, and this version reads 1"),
        ('{"schema": 1, "plan": {}}', "damaged"),
    ],
)
def test_a_damaged_run_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        State(tmp_path)
    assert holder_of(tmp_path / "lock") is None


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


def error_of(action: Callable[[], None]) -> ResourceError | None:
    try:
        action()
    except ResourceError as error:
        return error
    return None


def test_a_full_disk_at_any_call_leaves_a_run_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = 0
    for call in range(20):
        disk = Disk(monkeypatch)
        disk.fail_at = call
        destination = tmp_path / str(call)
        error = error_of(lambda to=destination: begin(to, 5).close())
        assert error is None or "disk is full" in str(error)
        started += error is None
        monkeypatch.undo()
        folder = destination / ".fr-deploy"
        run = read_run(folder)
        assert not list(destination.glob("**/*.part"))
        if run is None:
            begin(destination, 5).close()
        with State(folder) as state:
            state.check_list()
            assert [i.index for i in state.read_list()] == list(range(5))
    assert 0 < started < 15


def test_files_of_a_killed_beginning_are_removed(tmp_path: Path) -> None:
    begin(tmp_path, 1).close()
    torn = tmp_path / ".fr-deploy" / ".0123456789abcdef.part"
    torn.write_bytes(b"half")
    State(tmp_path / ".fr-deploy").close()
    assert not torn.exists()


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


def killed_run(path: Path, tally: Tally, *indexes: int, alone: bool = False) -> Begun:
    """A run that begins items and is killed."""
    begun = Begun(path, tally)
    for index in indexes:
        begun.begin(index, 1, alone)
    return begun


def test_three_orphans_are_run_alone_and_three_more_given_up(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    for _ in range(3):
        assert Begun(path, tally).verdict(7) == "run"
        killed_run(path, tally, 7, 8)
        tally.done.add(8)
    for _ in range(3):
        begun = Begun(path, tally)
        assert begun.verdict(7) == "alone"
        assert begun.verdict(8) == "run"
        killed_run(path, tally, 7, alone=True)
    begun = Begun(path, tally)
    assert (begun.verdict(7), begun.orphans(7), begun.suspects) == ("give_up", 6, 1)


def test_a_run_counts_once_however_often_it_began_an_item(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    begun = Begun(path, tally)
    for attempt in range(1, 6):
        begun.begin(1, attempt, False)
    assert Begun(path, tally).orphans(1) == 1


def test_a_run_that_ended_in_order_blames_nobody(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    for _ in range(5):
        killed_run(path, tally, 1).close()
    assert Begun(path, tally).orphans(1) == 0
    killed_run(path, tally, 1).close(orderly=False)
    assert Begun(path, tally).orphans(1) == 1


def test_items_that_were_returned_are_no_orphans(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    begun = killed_run(path, tally, 1, 2, 3)
    begun.returned([1, 3, 99])
    again = Begun(path, tally)
    assert [again.orphans(i) for i in (1, 2, 3)] == [0, 1, 0]


def test_kills_from_outside_need_ten_orphans(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 1, 2, alone=True)
    Begun(path, tally).close()
    tally.done.add(2)  # it was alone in a run that was killed, and succeeded later
    for run in range(2, 11):
        begun = killed_run(path, tally, 1, alone=True)
        assert begun.outside
        assert begun.verdict(1) == ("run" if run < 4 else "alone")
    assert Begun(path, tally).verdict(1) == "give_up"


def test_an_item_that_failed_proves_no_kill_from_outside(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 2, alone=True)
    Begun(path, tally).close()
    tally.done.add(2)
    tally.failed.add(2)
    assert not Begun(path, tally).outside


def test_begun_is_compacted(tmp_path: Path) -> None:
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 5)
    begun = Begun(path, tally, compact_bytes=20_000)
    largest = 0
    for index in range(10, 20_000):
        begun.begin(index, 1, False)
        if index > 12:
            tally.done.add(index - 2)
        largest = max(largest, path.stat().st_size) if index % 50 == 0 else largest
    assert largest < 260_000  # at most 4096 beginnings are kept that have an outcome
    again = Begun(path, tally)
    orphans = [i for i in range(20_000) if again.orphans(i)]
    assert orphans == [5, 10, 19_998, 19_999]
    assert path.stat().st_size < 300


def test_torn_and_damaged_notes_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # pyright: ignore[reportUnknownLambdaType]
    path, tally = tmp_path / "begun.jsonl", Tally()
    killed_run(path, tally, 1, 2)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        begun = Begun(path, tally)
        assert [begun.orphans(1), begun.orphans(2)] in ([0, 0], [1, 0])
    path.write_bytes(whole.replace(b"[2,", b"[3,"))
    assert Begun(path, tally).orphans(3) == 0


def test_noting_what_is_begun_costs_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Begun(tmp_path / "begun.jsonl", Tally())
    disk = Disk(monkeypatch)
    for index in range(100):
        begun.begin(index, 1, False)
    assert (disk.writes, disk.syncs) == (100, 0)
    disk.full = True
    with pytest.raises(ResourceError, match="disk is full"):
        begun.begin(100, 1, False)
    begun.close()


def test_a_state_written_by_hand_is_plain_json(tmp_path: Path) -> None:
    with begin(tmp_path, 2) as state:
        value = json.loads((state.folder / "run.json").read_text())
        assert value["plan"]["limits"] == vars(Plan().limits)
        lines = state.items_path.read_text().splitlines()
        assert [json.loads(line)["name"] for line in lines] == [item(0).name, item(1).name]
        assert replace(run_of(state), created=0.0) != run_of(state)
