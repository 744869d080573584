"""The engine under Ray without Ray: whose fault a death of an actor is, and what becomes of its photos."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batch_cli import FAKE
from batch_records import item
from fr_deploy.batch.ask import Ask
from fr_deploy.batch.engine import Done
from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.opening import Start
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.ray_actor import RayActor, check_surroundings
from fr_deploy.batch.ray_desk import ACTOR_KILLED, LOSSES, Desk
from fr_deploy.batch.ray_engine import (
    MOST_DEATHS_IN_A_ROW,
    MOST_SETUP_DEATHS,
    RayEngine,
    job_of,
    remove_parts_of,
)
from fr_deploy.batch.ray_job import Errand, Report
from fr_deploy.errors import ModelError, ResourceError


def restored(one: Item) -> Record:
    return Record(one.index, one.id, one.name, "restored")


class Scripted:
    """A fleet of one actor without Ray, which ends when it has certain photos, or does nothing."""

    def __init__(
        self, poison: set[int] = frozenset(), silent: bool = False, ready: int = 8
    ) -> None:  # type: ignore[assignment]
        self.members: list[ScriptedActor] = []
        self.poison, self.silent, self.ready = poison, silent, ready
        self.begun = 0

    def tend(self, job: object) -> None:
        if not self.members:
            self.begun += 1
            self.members.append(ScriptedActor())

    def poll(self, seconds: float) -> Iterator[tuple["ScriptedActor", Report | str]]:
        time.sleep(0.001)
        for member in list(self.members):
            if self.poison & member.held or not self.ready:
                yield member, "ended"
                continue
            done: list[Done] = [] if self.silent else [restored(e.item) for e in member.errands]
            member.errands = []
            member.report = Report("host", done, self.ready)
            yield member, member.report

    def end(self, members: object) -> None:
        self.members.clear()


class ScriptedActor:
    name = "host"

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.report: Report | None = None
        self.errands: list[Errand] = []

    def call(self, errands: list[Errand]) -> None:
        self.errands = errands


def run_scripted(
    fleet: Scripted, folder: Path, count: int = 20, watchdog: float = 60.0
) -> dict[int, Record]:
    start = Start(Ask((), (FAKE,)), Plan(), folder, folder)
    engine = RayEngine(fleet, start, Pace(folder, folder), watchdog, lambda text: None)  # type: ignore[arg-type]
    found: dict[int, Record] = {}

    def done(what: Done) -> None:
        assert isinstance(what, Record)
        assert what.index not in found, "two outcomes"
        found[what.index] = what

    engine.run(iter([(item(i), False) for i in range(count)]), done)
    assert not list(folder.glob(".*.part")), "the probe is left"
    return found


def test_a_photo_that_ends_its_actor_is_given_up_and_no_other(tmp_path: Path) -> None:
    fleet = Scripted(poison={7})
    found = run_scripted(fleet, tmp_path)
    failures = {
        index: record.reason for index, record in found.items() if record.status == "failed"
    }
    assert failures == {7: ACTOR_KILLED}
    assert len(found) == 20
    assert found[7].attempts == fleet.begun == 9
    assert found[19].attempts <= 1 + LOSSES


def test_actors_that_end_again_and_again_end_the_run(tmp_path: Path) -> None:
    fleet = Scripted(ready=0)
    with pytest.raises(ResourceError, match=f"{MOST_SETUP_DEATHS} actors ended"):
        run_scripted(fleet, tmp_path)
    assert fleet.begun == MOST_SETUP_DEATHS
    fleet = Scripted(poison=set(range(1000)), ready=1)
    with pytest.raises(ResourceError, match=f"{MOST_DEATHS_IN_A_ROW} actors ended"):
        run_scripted(fleet, tmp_path, 1000)


def test_the_watchdog_replaces_the_actors_once_and_then_ends_the_run(tmp_path: Path) -> None:
    fleet = Scripted(silent=True)
    with pytest.raises(ResourceError, match="no record came"):
        run_scripted(fleet, tmp_path, watchdog=0.3)
    assert fleet.begun == 2


def test_a_photo_of_earlier_runs_is_alone_everywhere() -> None:
    alone = iter([(item(0), False), (item(1), True), (item(2), False)])
    desk = Desk(alone, lambda one, alone: None, 3)
    first: set[int] = set()
    second: set[int] = set()
    assert [e.item.index for e in desk.take(first, 8)] == [0]
    assert desk.take(second, 8) == []
    assert desk.returned(restored(item(0)), first) is not None
    errands = desk.take(second, 8)
    assert [(e.item.index, e.alone) for e in errands] == [(1, True)]
    assert desk.take(first, 8) == []
    assert desk.returned(restored(item(1)), first) is None, "this actor does not have it"
    assert desk.returned(restored(item(1)), second) is not None
    assert [e.item.index for e in desk.take(first, 8)] == [2]


def test_parts_of_lost_photos_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("00ff-3.part", "00ff-13.part", "aa-3.part", "other"):
        (tmp_path / name).touch()
    remove_parts_of(tmp_path, {3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00ff-13.part", "other"]


def test_an_actor_on_another_disk_or_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    source = tmp_path / "in"
    source.mkdir()
    start = Start(Ask((str(source),), (FAKE,)), Plan(), tmp_path, tmp_path)
    job = job_of(start, Pace(tmp_path, tmp_path / "parts"))
    with pytest.raises(ResourceError, match="not the same folder there"):
        check_surroundings(job, "host")
    job.probe.write_text(job.secret)
    check_surroundings(job, "host")
    source.rmdir()
    with pytest.raises(ResourceError, match="is not there"):
        check_surroundings(job, "host")
    other = replace(job, version="0")
    with pytest.raises(ModelError, match="and 0 here"):
        check_surroundings(other, "host")
    report = Report("")
    actor = RayActor(other)
    while report.error is None:
        report = actor.exchange([], 0.05)
    assert report.error[0] == "ModelError"
