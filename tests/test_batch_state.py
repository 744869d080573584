"""A run's folder: what it began with is kept, nothing else resumes it, and it is whole or not there."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from batch_records import MODEL, Disk, begin, error_of, item, run_of
from fr_deploy import __version__
from fr_deploy.batch.folder import state_folder
from fr_deploy.batch.lock import holder_of
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.runfile import read_run
from fr_deploy.batch.state import State
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.inputs import Refusal
from fr_deploy.settings import RestoreOptions


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


def test_a_state_written_by_hand_is_plain_json(tmp_path: Path) -> None:
    with begin(tmp_path, 2) as state:
        value = json.loads((state.folder / "run.json").read_text())
        assert value["plan"]["limits"] == vars(Plan().limits)
        lines = state.items_path.read_text().splitlines()
        assert [json.loads(line)["name"] for line in lines] == [item(0).name, item(1).name]
        assert replace(run_of(state), created=0.0) != run_of(state)
