"""The lock of a run's folder: one run at a time, and whoever is refused is told who is there."""

import os
from pathlib import Path

import pytest

from batch_records import begin, start
from fr_deploy.batch.lock import Holder, Lock, holder_of
from fr_deploy.batch.state import State
from fr_deploy.errors import UsageError

HOLD = """
import sys, time
from pathlib import Path
from fr_deploy.batch.state import State
state = State(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


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
