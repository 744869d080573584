"""merge: shards become one run, or it is said what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from batch_records import MODEL, Disk, begin, item, record
from fr_deploy.batch.check import verify
from fr_deploy.batch.folder import state_folder
from fr_deploy.batch.ledger import Ledger, read_outcomes
from fr_deploy.batch.lock import Lock
from fr_deploy.batch.merge import merge
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.runfile import read_run
from fr_deploy.batch.state import State
from fr_deploy.errors import FrDeployError, ModelError, ResourceError, UsageError
from fr_deploy.inputs import Refusal

COUNT = 60


def shard(destination: Path, number: int, shards: int, *, left: int = 0) -> Path:
    """A shard whose items but `left` have outcomes, in another order than the list's."""
    with begin(destination, COUNT, shard=(number, shards)) as state:
        ledger = Ledger(state.ledger_path)
        indexes = [it.index for it in state.read_list()][left:]
        for index in reversed(indexes):
            ledger.append([record(index, at=float(index))])
        again = record(indexes[0])
        ledger.redo([again], "missing")
        ledger.append([record(indexes[0], at=1e6)])
        ledger.close()
        return state.folder


def shards_of(destination: Path, shards: int) -> Path:
    for number in range(shards):
        shard(destination, number, shards)
    return destination / ".fr-deploy"


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_become_one_run(tmp_path: Path, shards: int) -> None:
    folder = shards_of(tmp_path, shards)
    merged = merge(folder)
    assert (merged.shards, merged.items) == (shards, COUNT)
    with State(folder) as state:
        assert list(state.read_list()) == [item(i) for i in range(COUNT)]
        assert [r.index for r in read_outcomes(state.ledger_path)] == list(range(COUNT))
        assert sum(r.at == 1e6 for r in read_outcomes(state.ledger_path)) == shards
        assert state.ledger_path.read_bytes().count(b"\n") == COUNT
        assert state.destination == tmp_path.resolve()
        assert (state.begun.shard, state.begun.items) == (None, COUNT)
        state.check_same(Plan(), MODEL)
        assert verify(state).ok
    assert all(state_folder(tmp_path, (i, shards)).is_dir() for i in range(shards))


def test_a_merged_list_is_that_of_a_run_without_shards(tmp_path: Path) -> None:
    merge(shards_of(tmp_path / "a", 3))
    begin(tmp_path / "b", COUNT).close()
    one, other = read_run(tmp_path / "a" / ".fr-deploy"), read_run(tmp_path / "b" / ".fr-deploy")
    assert one
    assert other
    assert one.list_sha256 == other.list_sha256
    assert one.names_sha256 == other.names_sha256


def refused(folder: Path, kind: type[FrDeployError], *words: str) -> None:
    before = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    with pytest.raises(kind) as caught:
        merge(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    after = sorted(p.name for p in folder.iterdir() if p.name != "lock") if folder.is_dir() else []
    assert after == [name for name in before if name != "lock"]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    refused(tmp_path, UsageError, "holds no shards", "--shard 0/2")
    refused(tmp_path / "nowhere", UsageError, "holds no shards")
    for number in (0, 2):
        shard(tmp_path, number, 4)
    folder = tmp_path / ".fr-deploy"
    refused(folder, UsageError, "2 of 4 shards missing", "--shard 1/4")
    shard(tmp_path, 0, 2)
    refused(folder, UsageError, "runs of 2 and 4")


def test_an_unfinished_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2)
    unfinished = shard(tmp_path, 1, 2, left=3)
    words = ("3 of", "no outcome", f"resume {unfinished}")
    refused(tmp_path / ".fr-deploy", UsageError, *words)


def test_a_shard_that_was_never_begun(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2)
    State(state_folder(tmp_path, (1, 2))).close()
    refused(tmp_path / ".fr-deploy", UsageError, "shard-1-of-2 holds no run")


def test_a_shard_at_work_is_named(tmp_path: Path) -> None:
    folder = shards_of(tmp_path, 2)
    lock = Lock(state_folder(tmp_path, (1, 2)) / "lock")
    refused(folder, UsageError, "shard-1-of-2 is in use by process")
    lock.close()
    merge(folder)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("plan", {"quality": 3}, "plan."),
        ("model", {"unet": "x"}, "model.unet"),
        ("sink", {"kind": "tar"}, "sink.kind"),
        ("names_sha256", "0" * 64, "the list (names_sha256)"),
        ("whole_items", 61, "the list (whole_items)"),
        ("shard", [0, 2], "holds shard [0, 2]"),
    ],
)
def test_a_shard_of_another_run_is_refused(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    folder = shards_of(tmp_path, 2)
    path = state_folder(tmp_path, (1, 2)) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(folder, ModelError, "shard-1-of-2", words)


def test_a_folder_with_a_run_is_left_alone(tmp_path: Path) -> None:
    folder = shards_of(tmp_path, 2)
    merge(folder)
    refused(folder, UsageError, "was merged already")
    shutil.rmtree(folder)
    begin(tmp_path, 3).close()
    for number in range(2):
        shard(tmp_path, number, 2)
    refused(folder, UsageError, "holds a run")


def test_shards_with_items_of_each_other_are_refused(tmp_path: Path) -> None:
    folder = shards_of(tmp_path, 2)
    first, second = (state_folder(tmp_path, (i, 2)) for i in range(2))
    for name in ("items.jsonl", "ledger.jsonl"):
        shutil.copy(first / name, second / name)
    run = json.loads((second / "run.json").read_text())
    run["list_sha256"] = json.loads((first / "run.json").read_text())["list_sha256"]
    (second / "run.json").write_text(json.dumps(run))
    with pytest.raises(ModelError, match="together are not the list"):
        merge(folder)
    assert read_run(folder) is None


def test_pictures_and_refusals_come_along(tmp_path: Path) -> None:
    for number in range(2):
        with State(state_folder(tmp_path, (number, 2))) as state:
            state.write_list((item(i) for i in range(4)), shard=(number, 2))
            bad = [Refusal("bad", "unreadable", "no"), Refusal(f"bad-{number}", "x", "no")]
            state.create(Plan(), {}, sources=["s"], destination=tmp_path, refusals=bad)
            state.pictures_path.write_bytes(b"line %d\n" % number)
            Ledger(state.ledger_path).append([record(it.index) for it in state.read_list()])
    folder = tmp_path / ".fr-deploy"
    merge(folder)
    assert (folder / "pictures.jsonl").read_bytes() == b"line 0\nline 1\n"
    run = read_run(folder)
    assert run
    assert [r["name"] for r in run.refusals] == ["bad", "bad-0", "bad-1"]


def test_a_full_disk_at_any_call_leaves_a_merged_run_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards_of(tmp_path, 2)
    failures = 0
    for call in range(100):
        disk = Disk(monkeypatch)
        disk.fail_at = call
        error = error_of(folder)
        monkeypatch.undo()
        assert not list(folder.glob(".*.part"))
        if error is None or read_run(folder) is not None:  # all but the last fsync was well
            break
        failures += 1
    assert failures > 5
    with State(folder, write=False) as state:
        assert verify(state).ok


def error_of(folder: Path) -> ResourceError | None:
    try:
        merge(folder)
    except ResourceError as error:
        return error
    return None
