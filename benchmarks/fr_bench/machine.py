"""What a figure was measured on."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fr_deploy
from fr_kernels.sources import source_state


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware, versions and state of the source of one run."""

    cpu: str
    cores: int
    threads: int
    """That torch uses."""
    load: float
    """Mean number of running processes in the minute before: above 0, others shared the machine."""
    python: str
    torch: str
    diffusers: str
    """Empty where it is not installed: kernels are measured without it."""
    fr_deploy: str
    commit: str
    """Empty outside a git checkout."""
    dirty: bool
    """Tracked files differ from the commit, the results themselves excepted."""


def this_machine() -> Machine:
    """The machine as it is now; call it before measuring, for `load`."""
    commit, dirty = source_state(Path(__file__).parent, ":!benchmarks/results")
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        torch=torch.__version__,
        diffusers=_diffusers(),
        fr_deploy=fr_deploy.__version__,
        commit=commit,
        dirty=dirty,
    )


def _diffusers() -> str:
    try:
        return version("diffusers")
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
