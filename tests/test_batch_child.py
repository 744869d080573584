"""A child of a run: hardened, ended with its parent, and told apart from what it works on."""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from batch_stages import ToyDevice, ToyPrepare, item
from fr_deploy.batch.channel import GarbledError
from fr_deploy.batch.child import Start
from fr_deploy.batch.item import Item, Record
from fr_deploy.batch.messages import Fault, PrepareTask, Ready, Reply, RestoreTask
from fr_deploy.batch.processes import Child
from fr_deploy.batch.stage import Role

SPACE = 3 * 2**30
WAIT = 30.0


def start(role: Role, stage: Any, space: int | None = None) -> Child:
    import pickle

    return Child(Start(role, pickle.dumps(stage), space), 0)


def hear(child: Child) -> list[Any]:
    """Wait for the next message, and what came with it."""
    assert select.select([child.channel], [], [], WAIT)[0], "nothing came"
    messages: list[Any] = []
    try:
        for message in child.hear():
            messages.append(message)
    except EOFError:
        if not messages:
            raise
    return messages


class Look:
    """Tells of the process it runs in."""

    def setup(self) -> None:
        pass

    def __call__(self, task: Item) -> Record:
        death = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(death))
        ignored = [s for s in (2, 15, 1) if signal.getsignal(s) == signal.SIG_IGN]
        facts: dict[str, Any] = {
            "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
            "space": resource.getrlimit(resource.RLIMIT_AS)[0],
            "ignored": ignored,
            "death": death.value,
            "torch": "torch" in sys.modules,
            "files": [os.readlink(f"/proc/self/fd/{n}") for n in _files()],
            "oom": int(Path("/proc/self/oom_score_adj").read_text()),
        }
        return Record(task.index, task.id, task.name, "failed", faces=[facts])


def _files() -> list[str]:
    return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]


def test_a_child_is_hardened() -> None:
    child = start("prepare", Look(), SPACE)
    assert hear(child) == [Ready()]
    child.give("job", PrepareTask(item(0)))
    (reply,) = hear(child)
    facts = reply.value.faces[0]
    assert facts["core"] == 1
    assert facts["space"] == SPACE
    assert facts["ignored"] == [2, 15, 1]
    assert facts["death"] == signal.SIGKILL
    assert facts["torch"] is False
    assert facts["oom"] > 0
    assert sum("socket" in name for name in facts["files"]) <= 1 + sum(
        "socket" in os.readlink(f"/proc/self/fd/{n}") for n in ("0", "1", "2")
    ), "a child holds another one's socket, which would then have no end"
    assert child.answered() == "job"
    code = child.end()
    assert code in (0, -signal.SIGKILL), "its closed channel may end it before the signal does"
    assert child.end() == code


def test_signals_of_the_group_do_not_reach_the_work() -> None:
    child = start("prepare", ToyPrepare())
    assert hear(child) == [Ready()]
    status = Path(f"/proc/{child.pid}/stat").read_text()
    server = int(status.rpartition(")")[2].split()[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
        os.kill(server, number)
    child.give("job", PrepareTask(item(3)))
    (reply,) = hear(child)
    assert reply.value.faces == 1
    child.end()


def test_the_way_it_ended_is_known() -> None:
    for what, code in (("abort", -signal.SIGABRT), ("segv", -signal.SIGSEGV), ("exit", 3)):
        child = start("prepare", ToyPrepare())
        assert hear(child) == [Ready()]
        child.give("job", PrepareTask(item(0, f"{what}.prepare")))
        with pytest.raises(EOFError):
            hear(child)
        assert child.ended() == code


def test_a_task_for_one_that_is_gone_is_not_taken_for_given() -> None:
    child = start("prepare", ToyPrepare())
    assert hear(child) == [Ready()]
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EOFError):
        hear(child)
    assert not child.give("job", PrepareTask(item(0)))
    assert not child.jobs
    with pytest.raises(GarbledError):
        child.answered()
    child.end()


def test_a_set_up_that_fails_says_why() -> None:
    child = start("prepare", ToyPrepare(set_up_fails="boom"))
    (fault,) = hear(child)
    assert isinstance(fault, Fault)
    assert (fault.error, fault.reason) == ("", "unexpected")
    assert fault.message == "ZeroDivisionError: boom"
    child.end()


def test_a_limit_of_memory_is_a_reason_and_not_a_death() -> None:
    child = start("prepare", Greedy(), SPACE)
    assert hear(child) == [Ready()]
    child.give("job", PrepareTask(item(0)))
    (fault,) = hear(child)
    assert (fault.error, fault.reason) == ("ImageError", "too_large")
    child.end()


class Greedy:
    def setup(self) -> None:
        pass

    def __call__(self, task: Item) -> Record:
        bytearray(2 * SPACE)
        raise AssertionError


def test_a_device_that_loses_a_face_is_at_fault() -> None:
    from batch_stages import crops_of
    from fr_deploy.batch.channel import Parcel

    child = start("device", Loses())
    assert hear(child) == [Ready()]
    parcel = Parcel.pack(crops_of(0, 3))
    child.give("job", RestoreTask(((parcel, 0, 2), (parcel, 2, 3))))
    (fault,) = hear(child)
    assert fault.message == "ValueError: 2 faces came back of 3"
    child.end()


class Loses(ToyDevice):
    def __call__(self, task: Any) -> Any:
        return super().__call__(type(task)(task.crops[1:]))


HANGS = """
import ctypes, os, sys
from pathlib import Path
from batch_stages import *
from batch_runs import *

class Hangs(ToyPrepare):
    def __call__(self, task):
        Path(sys.argv[1], str(os.getpid())).touch()
        ctypes.PyDLL(None).pause()  # native code that never gives Python's lock back

if __name__ == "__main__":
    stages = Stages(Hangs(), [ToyDevice()], ToyFinish())
    Run(stages, pace())(item(i) for i in range(10))
"""


def test_children_that_hang_natively_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    marks = tmp_path / "marks"
    marks.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.Popen([sys.executable, script, marks], env=environment)
    try:
        _until(lambda: len(list(marks.iterdir())) == 2)
        family = _descendants(run.pid)
        assert len(family) >= 5, "two preparers, a device, a finisher, and their server"
    finally:
        run.kill()
        run.wait()
    _until(lambda: not any(_runs(pid) for pid in family))


def _until(condition: Any) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def test_a_reply_is_a_reply() -> None:
    child = start("prepare", ToyPrepare())
    assert hear(child) == [Ready()]
    for number in range(3):
        assert child.give(number, PrepareTask(item(number, faces=2)))
    got: list[Reply] = []
    while len(got) < 3:
        got += hear(child)
    assert [child.answered() for _ in got] == [0, 1, 2]
    assert [reply.value.crops.open().shape[0] for reply in got] == [2, 2, 2]  # type: ignore[union-attr]
    child.end()
