"""Memory that faces were in is kept: a second one of the same size faults no pages in."""

import subprocess
import sys

import pytest

from fr_deploy.runtime import memory

CODE = """
import resource, torch
from fr_deploy.runtime.memory import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def pictures():
    picture = torch.ones(2, 1 << 20)
    for _ in range(20):
        picture = picture + 1
for _ in range(3):
    pictures()
before = faults()
pictures()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.parametrize("attempt", range(3))
def test_the_next_face_faults_no_pages_in(attempt: int) -> None:
    """Three processes: without, it depends on where the heap happens to lie, 0 to 30,000."""
    del attempt
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert not memory.keep_freed_memory()
