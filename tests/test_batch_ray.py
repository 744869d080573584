"""`--ray`: what is refused and how soon, whose fault a death of an actor is, and that the outputs are the same ones."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batch_cli import (
    FAKE,
    Group,
    batch,
    fast,
    ledger_lines,
    make_photos,
    records,
    results,
    wait_until,
)
from batch_records import item
from fr_bench.soak_ray import family, until_gone
from fr_deploy.batch.ask import Ask
from fr_deploy.batch.engine import Done
from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.opening import Start
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.ray_actor import RayActor, check_surroundings
from fr_deploy.batch.ray_choice import RayChoice, check_ray, parse_address
from fr_deploy.batch.ray_desk import ACTOR_KILLED, LOSSES, Desk
from fr_deploy.batch.ray_engine import (
    MOST_DEATHS_IN_A_ROW,
    MOST_SETUP_DEATHS,
    RayEngine,
    job_of,
    remove_parts_of,
)
from fr_deploy.batch.ray_job import Errand, Report
from fr_deploy.errors import ModelError, ResourceError, UsageError

__all__ = ["fast"]  # a fixture
ROOT = Path(__file__).parents[1]
ANSWER_S = 10


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


def test_a_photo_that_ends_its_actor_is_given_up_and_no_other(tmp_path):
    fleet = Scripted(poison={7})
    found = run_scripted(fleet, tmp_path)
    failures = {
        index: record.reason for index, record in found.items() if record.status == "failed"
    }
    assert failures == {7: ACTOR_KILLED}
    assert len(found) == 20
    assert found[7].attempts == fleet.begun == 9
    assert found[19].attempts <= 1 + LOSSES


def test_actors_that_end_again_and_again_end_the_run(tmp_path):
    fleet = Scripted(ready=0)
    with pytest.raises(ResourceError, match=f"{MOST_SETUP_DEATHS} actors ended"):
        run_scripted(fleet, tmp_path)
    assert fleet.begun == MOST_SETUP_DEATHS
    fleet = Scripted(poison=set(range(1000)), ready=1)
    with pytest.raises(ResourceError, match=f"{MOST_DEATHS_IN_A_ROW} actors ended"):
        run_scripted(fleet, tmp_path, 1000)


def test_the_watchdog_replaces_the_actors_once_and_then_ends_the_run(tmp_path):
    fleet = Scripted(silent=True)
    with pytest.raises(ResourceError, match="no record came"):
        run_scripted(fleet, tmp_path, watchdog=0.3)
    assert fleet.begun == 2


def test_a_photo_of_earlier_runs_is_alone_everywhere():
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


def test_parts_of_lost_photos_are_removed_and_no_others(tmp_path):
    for name in ("00ff-3.part", "00ff-13.part", "aa-3.part", "other"):
        (tmp_path / name).touch()
    remove_parts_of(tmp_path, {3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00ff-13.part", "other"]


def test_an_actor_on_another_disk_or_of_another_version_is_refused(tmp_path):
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


@pytest.mark.parametrize(
    "text", ["in/", "photos", "ray://head:10001", "head:0", "head:70000", ":6379"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--ray"):
        parse_address(text)
    assert parse_address("head-1.lan:6379") == "head-1.lan:6379"


@pytest.mark.parametrize("devices", [("cuda:0",), ("cuda:0", "cuda:1"), (FAKE, FAKE)])
def test_devices_that_ray_has_to_choose_are_refused(devices):
    with pytest.raises(UsageError, match="with --ray it is one of"):
        check_ray(RayChoice(), Ask((), devices))


def refused(tmp_path: Path, *more: object) -> str:
    """What a run says that is to be refused with exit code 6 within ten seconds."""
    source = make_photos(tmp_path / "in", 1)
    began = time.monotonic()
    done = batch(source, tmp_path / "out", "--aligned", "--device", FAKE, *more)
    assert done.returncode == 6, done.stderr
    assert time.monotonic() - began < ANSWER_S
    assert not (tmp_path / "out").exists(), "something was written"
    return done.stderr


def test_an_address_where_nothing_answers_is_refused_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "nothing answers" in refused(tmp_path, "--ray", f"127.0.0.1:{port}")
    assert "nothing answers" in refused(tmp_path, "--ray", f"127.0.0.1:{port}")


def test_an_address_of_something_else_is_refused_in_time(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        text = refused(tmp_path, "--ray", f"127.0.0.1:{server.getsockname()[1]}")
    assert "no head of Ray" in text


def test_a_bare_ray_before_src_is_explained(tmp_path):
    done = batch("--ray", make_photos(tmp_path / "in", 1), tmp_path / "out")
    assert done.returncode == 2
    assert "--ray=local" in done.stderr or "name SRC" in done.stderr


# From here on with Ray: seconds for each start of it.


@pytest.mark.slow
def test_ray_goes_on_with_what_was_begun_without_it_and_writes_the_same(fast):
    source, out, whole = make_photos(fast / "in", 60), fast / "out", fast / "whole"
    fixed = ("--aligned", "--device", "fake:20ms+5ms", "--batch", 2, "--progress", "none")
    assert batch(source, whole, *fixed).returncode == 0
    with Group(source, out, *fixed) as run:
        wait_until(lambda: ledger_lines(out) > 0, "a record")
        run.kill()
    before = ledger_lines(out)
    assert 0 < before < 60
    with Group("resume", out, "--progress", "none", "--ray", stderr=subprocess.STDOUT) as run:
        wait_until(lambda: ledger_lines(out) > before, "a record of Ray's actor")
        processes = [*family(run.process.pid)]
        token = next(Path(tempfile.gettempdir()).glob(f"fr-ray-{run.process.pid}-*/token"))
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.parent.stat().st_mode & 0o777 == 0o700
        code, text, _ = run.ended()
        assert code == 0, text
    until_gone(processes)
    assert not token.parent.exists()
    assert ledger_lines(out) == len({record.id for record in records(out)}) == 60
    assert results(out) == results(whole)


@pytest.mark.slow
def test_the_real_model_gives_the_same_bytes_under_ray(fast):
    photos = sorted((ROOT / "assets" / "demo").glob("*.jpg"))[:3]
    assert len(photos) == 3
    fixed = ("--device", "cpu", "--fixed-bucket", 1, "--progress", "none")
    for name, more in (("embedded", ()), ("ray", ("--ray",))):
        done = batch(*photos, fast / name, *fixed, *more, timeout=400)
        assert done.returncode == 0, done.stderr
    assert len(results(fast / "ray")) == 3
    assert results(fast / "ray") == results(fast / "embedded")


@pytest.fixture
def cluster() -> Iterator["Cluster"]:
    # Not tmp_path, which is too long for the names of Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        made = Cluster(Path(folder))
        try:
            made.begin()
            yield made
        finally:
            made.end()


class Cluster:
    """Two nodes on this machine's loopback, each with its own address, as `ray start` begins them."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.2", 0)) as server:
            self.port = server.getsockname()[1]
        self.address = f"127.0.0.2:{self.port}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder = folder

    def begin(self) -> None:
        self._start("127.0.0.2", "--head", f"--port={self.port}", f"--temp-dir={self.folder / 'r'}")
        self.wait(1)
        self._start("127.0.0.3", f"--address={self.address}")
        self.wait(2)

    def _start(self, address: str, *more: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        fixed = [
            f"--node-ip-address={address}",
            "--num-cpus=1",
            "--num-gpus=0",
            "--disable-usage-stats",
        ]
        small = ["--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0"]
        head = ["--include-dashboard=false"] if "--head" in more else []
        process = subprocess.Popen(
            [*command, *fixed, *small, *head, *more],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)

    def wait(self, nodes: int) -> None:
        """Until so many raylets are at work."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = [
                n for p in self.processes for n in family(p.pid).values() if "raylet/raylet" in n
            ]
            if len(found) >= nodes:
                time.sleep(1)
                return
            time.sleep(0.1)
        raise AssertionError(f"{nodes} nodes did not begin")

    def kill(self, number: int) -> None:
        """End a node with all that runs on it."""
        pids = [*family(self.processes[number].pid)]
        for pid in pids:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.processes[number].wait(30)

    def end(self) -> None:
        for number in range(len(self.processes)):
            self.kill(number)

    def run(self, *arguments: object, **more: str) -> Group:
        return Group(*arguments, "--ray", self.address, env=os.environ | self.environment | more)


@pytest.mark.slow
def test_two_nodes_of_which_one_ends(cluster, fast):
    source, out = make_photos(fast / "in", 240), fast / "out"
    fixed = ("--aligned", "--device", "fake:20ms+5ms", "--batch", 2, "--progress", "none")
    with cluster.run(source, fast / "none", "--device", "cuda") as run:
        began = time.monotonic()
        code, _, text = run.ended()
        assert (code, time.monotonic() - began < ANSWER_S) == (6, True), text
        assert "GPUs are in the Ray cluster" in text
    with cluster.run(source, fast / "none", *fixed, RAY_AUTH_TOKEN="6" * 64) as run:
        code, _, text = run.ended()
        assert code == 6
        assert "does not take this token" in text
    with cluster.run(source, out, *fixed) as run:
        while ledger_lines(out) < 20:
            assert run.process.poll() is None, run.ended()
            time.sleep(0.02)
        actors = [
            n for p in cluster.processes for n in family(p.pid).values() if "ray::RayActor" in n
        ]
        assert len(actors) == 2
        cluster.kill(1)
        code, _, text = run.ended()
        assert code == 0, text
    assert "another one takes its place" in text
    assert ledger_lines(out) == len({record.id for record in records(out)}) == 240
    assert {record.status for record in records(out)} == {"restored"}
    assert batch("verify", out).returncode == 0
