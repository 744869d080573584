"""`--ray` with Ray, seconds for each start of it: the outputs are the same ones, and a node may end."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_cli import (
    ANSWER_S,
    Group,
    batch,
    fast,
    ledger_lines,
    make_photos,
    records,
    results,
    wait_until,
)
from fr_bench.killing import family, until_gone

__all__ = ["fast"]  # a fixture
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_ray_goes_on_with_what_was_begun_without_it_and_writes_the_same(fast: Path) -> None:
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
def test_the_real_model_gives_the_same_bytes_under_ray(fast: Path) -> None:
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
def test_two_nodes_of_which_one_ends(cluster: Cluster, fast: Path) -> None:
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
