"""The engine: every photo gets one outcome, whatever its stages do."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_runs import Run, pace, toy_stages
from batch_stages import ToyDevice, ToyFinish, ToyPrepare, ToyRefuse, item
from fr_deploy.batch.engine import Engine
from fr_deploy.batch.item import Item
from fr_deploy.batch.stage import Stages
from fr_deploy.errors import ModelError, ResourceError, UsageError


def test_two_thousand_photos_are_done_once_each() -> None:
    run = Run(toy_stages(), pace())(item(i, faces=i % 4) for i in range(2000))
    assert len(run.records) == 2000
    assert not run.failures()
    assert run.begun == [item(i, faces=i % 4).name for i in range(2000)]
    stats = run.engine.stats
    assert (stats.begun, stats.done, stats.faces) == (2000, 2000, 3000)
    assert stats.batches >= 3000 / 16
    assert sum(stats.restarts.values()) == 0
    assert all(record.attempts == 1 for record in run.records.values())


def test_no_descriptor_and_no_process_is_left() -> None:
    Run(toy_stages(), pace())([item(0)])  # the fork server and its descriptors stay
    before = len(os.listdir("/proc/self/fd"))
    run = Run(toy_stages(), pace())
    seen: list[int] = []
    pids: set[int] = set()

    def look() -> None:
        seen.append(len(os.listdir("/proc/self/fd")))
        pids.update(
            run.engine.pids("prepare"), run.engine.pids("device"), run.engine.pids("finish")
        )

    run.after = look
    run(item(i) for i in range(1000))
    assert max(seen[500:]) <= before + 32 * 3 + 40
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(pids) == 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_no_more_are_begun_than_in_flight() -> None:
    run = Run(toy_stages(), pace(in_flight=5))
    most = 0

    def items() -> Iterator[Item]:
        nonlocal most
        for i in range(100):
            most = max(most, i + 1 - len(run.records))
            yield item(i)

    run(items())
    assert len(run.records) == 100
    assert most == 5


def test_photos_of_many_faces_are_split_and_joined_in_order(tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"
    run = Run(toy_stages(sizes=sizes), pace(batch=16))
    run(item(i, faces=40) for i in range(12))
    assert len(run.records) == 12
    assert not run.failures()
    assert all(len(record.faces) == 40 for record in run.records.values())
    batches = [int(line) for line in sizes.read_text().split()]
    assert max(batches) == 16
    assert sum(batches) == 480


def test_what_is_wrong_with_a_photo_is_its_reason() -> None:
    whats = ["bad.prepare", "bad.device", "bad.finish", "boom.prepare", "boom.finish"]
    items = [item(i, whats[i // 10] if i % 10 == 0 else "ok") for i in range(50)]
    run = Run(toy_stages(), pace())(items)
    assert len(run.records) == 50
    wanted = ["corrupt"] * 3 + ["unexpected"] * 2
    assert run.failures() == {items[i * 10].name: reason for i, reason in enumerate(wanted)}
    assert run.records[items[30].name].message == "ZeroDivisionError: boom"
    assert all(record.attempts == 1 for record in run.records.values())
    assert sum(run.engine.stats.restarts.values()) == 0


def test_a_traceback_is_logged_for_who_looks(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        Run(toy_stages(), pace())([item(0, "boom.prepare")])
    assert "in fault" in caplog.text


@pytest.mark.parametrize("what", ["abort", "segv", "exit"])
@pytest.mark.parametrize(
    ("role", "reason"),
    [("prepare", "decoder_killed"), ("device", "device_killed"), ("finish", "encoder_killed")],
)
def test_a_photo_that_ends_its_process_is_given_up_alone(what: str, role: Any, reason: str) -> None:
    items = [item(i, f"{what}.{role}" if i == 7 else "ok") for i in range(60)]
    run = Run(toy_stages(), pace(attempts=3))(items)
    assert len(run.records) == 60
    assert run.failures() == {items[7].name: reason}
    record = run.records[items[7].name]
    assert record.attempts == 3
    end = {"abort": "signal 6 (SIGABRT)", "segv": "signal 11 (SIGSEGV)", "exit": "exit code 3"}
    assert end[what] in record.message
    assert run.engine.stats.restarts[role] >= 3
    assert len(run.lines) == sum(run.engine.stats.restarts.values())


@pytest.mark.parametrize("role", ["prepare", "finish", "device"])
def test_a_photo_that_hangs_is_given_up_after_two_limits(role: str) -> None:
    items = [item(i, f"hang.{role}" if i == 7 else "ok") for i in range(30)]
    run = Run(toy_stages(), pace(item_seconds=1.5, device_seconds=1.5))(items)
    assert run.failures() == {items[7].name: "timeout"}
    assert "took longer than 1.5 s" in run.records[items[7].name].message
    assert len(run.records) == 30


def test_an_unexpected_error_of_a_device_is_the_end_of_its_process() -> None:
    """After some errors CUDA fails at everything; a neighbour must not be blamed for that."""
    items = [item(i, "boom.device" if i == 7 else "ok") for i in range(40)]
    run = Run(toy_stages(), pace(attempts=3))(items)
    assert run.failures() == {items[7].name: "unexpected"}
    assert "ZeroDivisionError" in run.records[items[7].name].message
    assert run.engine.stats.restarts["device"] >= 3


def test_a_full_disk_ends_the_run() -> None:
    run = Run(toy_stages(), pace())
    with pytest.raises(ResourceError, match="No space left"):
        run(item(i, "full.finish" if i == 20 else "ok") for i in range(1000))
    assert 0 < len(run.records) < 100
    assert not run.failures()


def test_a_model_that_cannot_be_loaded_ends_the_run_at_once(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    run = Run(toy_stages(ToyPrepare(set_up_fails="model", counts=counts)), pace(preparers=1))
    with pytest.raises(ModelError, match="no such model"):
        run([item(0)])
    assert len(counts.read_text().split()) == 1, "it was loaded once"
    assert run.begun == [], "a photo begun without an outcome would be suspect at the next run"


def test_processes_that_end_in_their_set_up_end_the_run(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    run = Run(toy_stages(ToyPrepare(set_up_fails="abort", counts=counts)), pace(preparers=1))
    with pytest.raises(ResourceError, match="3 times in a row before it was set up"):
        run([item(0)])
    assert len(counts.read_text().split()) == 3


def test_processes_that_end_at_every_photo_end_the_run() -> None:
    run = Run(toy_stages(), pace())
    with pytest.raises(ResourceError, match="20 prepare processes ended one after the other"):
        run(item(i, "abort.prepare") for i in range(1000))
    assert len(run.records) <= 6


def test_a_role_without_a_process_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one process"):
        Engine(Stages(ToyPrepare(), [], ToyFinish()), pace())


def test_stop_finishes_what_was_begun() -> None:
    run = Run(toy_stages(ToyPrepare(0.001)), pace())
    stop = threading.Event()
    run.after = lambda: stop.set() if len(run.records) == 20 else None
    run((item(i) for i in range(10_000)), stop=stop)
    assert sorted(run.records) == sorted(run.begun)
    assert 20 <= len(run.records) < 200
    assert not run.failures()


def test_abort_returns_at_once() -> None:
    run = Run(toy_stages(ToyPrepare(), base=60.0), pace())
    abort = threading.Event()
    at: list[float] = []

    def abort_when_full() -> None:
        while len(run.begun) < 32:
            time.sleep(0.05)
        time.sleep(0.5)  # none begins while all are under way
        at.append(time.monotonic())
        abort.set()

    threading.Thread(target=abort_when_full, daemon=True).start()
    run((item(i) for i in range(100)), abort=abort)
    assert time.monotonic() - at[0] < 20
    assert not run.records
    assert len(run.begun) == 32


def test_who_is_alone_is_alone() -> None:
    run = Run(toy_stages(), pace())
    beside: dict[str, int] = {}
    lonely = {5, 6, 20}

    def pairs() -> Iterator[tuple[Item, bool]]:
        for i in range(60):
            yield item(i), i in lonely

    def begin(each: Item, alone: bool) -> None:
        run.note(each, alone)
        assert alone == (each.index in lonely)
        beside[each.name] = len(run.begun) - 1 - len(run.records)

    run.engine.run(pairs(), run.done, on_begin=begin)
    assert len(run.records) == 60
    for index in lonely:
        name, after = item(index).name, item(index + 1).name
        assert beside[name] == 0, "others were in flight"
        assert beside[after] == 0, "another one was begun beside it"


def test_a_source_may_have_nothing_for_a_while() -> None:
    run = Run(toy_stages(), pace())

    def slowly() -> Iterator[tuple[Item, bool] | None]:
        for i in range(9):
            yield item(i), False
            if i % 3 == 2:
                while len(run.records) <= i:  # what was begun goes on meanwhile
                    yield None

    run.engine.run(slowly(), run.done)
    assert len(run.records) == 9


def test_a_slow_consumer_holds_the_source_back() -> None:
    run = Run(toy_stages(), pace(in_flight=8, item_seconds=0.5))
    run.after = lambda: time.sleep(0.7 if len(run.records) < 4 else 0.0)
    run(item(i) for i in range(60))
    assert len(run.records) == 60
    assert not run.failures(), "time that the consumer took is not the processes'"


def test_a_stage_may_end_a_photo_itself() -> None:
    run = Run(Stages(ToyRefuse(), [ToyDevice()], ToyFinish()), pace())(item(i) for i in range(10))
    assert set(run.failures().values()) == {"changed"}
    assert {record.in_sha256 for record in run.records.values()} == {"ab"}


def test_a_fast_crew_keeps_its_device_busy() -> None:
    """As in a run with a real device: batches of 16 faces at 512 pixels would do the same with larger copies."""
    run = Run(
        toy_stages(base=0.04, per_face=0.01), pace(preparers=1, in_flight=64, flush_seconds=0.1)
    )
    run(item(i, faces=2) for i in range(160))
    stats = run.engine.stats
    assert stats.batch_fill > 14
    assert stats.busy_fraction("device") >= 0.9
    assert 0 < stats.busy_fraction("prepare") < 0.5


def test_two_devices_share_the_faces() -> None:
    devices: list[Any] = [ToyDevice(base=0.1), ToyDevice(base=0.1)]
    run = Run(Stages(ToyPrepare(), devices, ToyFinish()), pace(batch=4, in_flight=48))
    run(item(i) for i in range(80))
    assert len(run.records) == 80
    busy = run.engine.stats.busy_seconds["device"]
    assert run.engine.stats.processes["device"] == 2
    span = run.engine.stats.last_reply["device"] - run.engine.stats.first_task["device"]
    assert busy / span > 1.3, "they worked one after the other"
