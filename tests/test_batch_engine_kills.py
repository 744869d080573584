"""Processes killed from outside: the run completes, and no photo is blamed for what was not its fault."""

import os
import random
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from batch_runs import Run, pace, toy_stages
from batch_stages import ToyPrepare, item
from fr_deploy.batch.stage import Role


class Killer:
    """Kills a process of a role whenever the run has got a little further, so many times."""

    def __init__(self, run: Run, role: Role, times: int, every: int, seed: int = 0) -> None:
        self.run, self.times, self.every = run, times, every
        self.role: Role = role
        self.killed: set[int] = set()
        self._draw = random.Random(seed)
        self._next = 1
        run.after = self

    def __call__(self) -> None:
        if len(self.run.records) < self._next or len(self.killed) == self.times:
            return
        self._next = len(self.run.records) + self._draw.randint(1, 2 * self.every - 1)
        self.kill()

    def kill(self) -> None:
        """One that lives: the end of one that was killed may not have been noticed yet."""
        living = [pid for pid in self.run.engine.pids(self.role) if pid not in self.killed]
        if living:
            pid = self._draw.choice(living)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed.add(pid)


@pytest.mark.parametrize(
    ("role", "times", "every"), [("prepare", 50, 3), ("finish", 20, 6), ("device", 20, 6)]
)
def test_every_photo_is_restored_whoever_is_killed(role: Role, times: int, every: int) -> None:
    run = Run(toy_stages(ToyPrepare(0.002), base=0.004, per_face=0.001), pace(batch=8))
    killer = Killer(run, role, times, every)
    run(item(i) for i in range(300))
    assert len(killer.killed) == times
    assert len(run.records) == 300
    assert not run.failures()
    assert run.engine.stats.restarts[role] == times
    assert len(run.begun) == 300, "a photo that is tried again is not begun again"


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_the_guilty_are_found_among_the_killed(seed: int) -> None:
    guilty = {40: "segv.prepare", 90: "abort.finish", 140: "abort.device"}
    items = [item(i, guilty.get(i, "ok")) for i in range(180)]
    run = Run(toy_stages(ToyPrepare(0.002), base=0.002), pace(batch=4))
    killer = Killer(run, "prepare", 20, 6, seed)
    run(items)
    assert len(killer.killed) == 20
    reasons = ["decoder_killed", "encoder_killed", "device_killed"]
    names = [items[i].name for i in guilty]
    assert run.failures() == dict(zip(names, reasons, strict=True))
    assert len(run.records) == 180


def test_one_photo_that_is_hit_again_and_again_is_not_given_up(tmp_path: Path) -> None:
    """Five times, while others are struck twice: once they come through, somebody else must be the killer."""
    hits = {3: 5, 8: 1, 12: 2}
    run = Run(toy_stages(ToyPrepare(hits=hits, counts=tmp_path)), pace(preparers=1, attempts=3))
    run(item(i) for i in range(40))
    assert not run.failures()
    assert len(run.records) == 40
    assert run.records[item(3).name].attempts == 6
    assert run.engine.stats.restarts["prepare"] == 8


def test_the_second_task_of_a_process_is_not_to_blame_for_the_first() -> None:
    items = [item(i, "abort.prepare" if i % 12 == 0 else "ok") for i in range(60)]
    run = Run(toy_stages(), pace(preparers=1))(items)
    assert set(run.failures()) == {each.name for each in items if each.index % 12 == 0}
    others = [r for r in run.records.values() if r.status == "restored"]
    assert all(record.attempts == 1 for record in others)


def test_neighbours_in_a_batch_are_not_to_blame() -> None:
    items = [item(i, "abort.device" if i in (9, 30) else "ok") for i in range(48)]
    run = Run(toy_stages(), pace(batch=16, flush_seconds=5))(items)
    assert set(run.failures()) == {items[9].name, items[30].name}
    others = [r for r in run.records.values() if r.status == "restored"]
    assert all(record.attempts == 1 for record in others)


def test_a_poison_face_of_a_photo_of_many_is_found() -> None:
    items = [item(i, "abort.device" if i == 2 else "ok", faces=40) for i in range(5)]
    run = Run(toy_stages(), pace(batch=16))(items)
    assert set(run.failures()) == {items[2].name}
    assert len(run.records) == 5


def test_a_run_outlives_its_fork_server() -> None:
    run = Run(toy_stages(ToyPrepare(0.002)), pace())
    servers: list[int] = []

    def kill() -> None:
        if len(run.records) in (20, 60):
            status = Path(f"/proc/{run.engine.pids('prepare')[0]}/stat").read_text()
            servers.append(int(status.rpartition(")")[2].split()[1]))
            os.kill(servers[-1], signal.SIGKILL)

    run.after = kill
    run(item(i) for i in range(100))
    assert len(set(servers)) == 2
    assert not run.failures()
    assert len(run.records) == 100


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killing_all_roles_at_any_moment(seed: int) -> None:
    """Also while they are set up, or idle, or between two tasks."""
    draw = random.Random(seed)
    run = Run(toy_stages(ToyPrepare(0.002), base=0.004), pace(batch=8))
    roles: tuple[Role, ...] = ("prepare", "device", "finish")
    killers = [Killer(run, role, 40, 1, draw.randint(0, 999)) for role in roles]
    run.after = lambda: None
    over = threading.Event()

    def kill() -> None:
        waits = random.Random(seed)
        while not over.wait(waits.uniform(0.02, 0.15)):
            killer = waits.choice(killers)
            if run.records and len(killer.killed) < killer.times:
                killer.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        run(item(i, faces=draw.randint(0, 12)) for i in range(2000))
    finally:
        over.set()
        thread.join()
    assert sum(len(killer.killed) for killer in killers) > 20
    assert len(run.records) == 2000
    assert not run.failures()
