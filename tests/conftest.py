"""Triton kernels run interpreted in the tests, but for `pytest -m gpu`. Compiled forms: `fr_kernels.aot`."""

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set before any test module is imported: a kernel's decorator reads the one, torch and OpenMP the other."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
    if (
        "PYTEST_XDIST_WORKER" in os.environ
    ):  # two processes of two threads each on two cores took 11 minutes, not 6.5
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests recorded under `figure`: sizes, seconds and memory that are worth a look in CI's log."""
    reports = terminalreporter.stats.get("passed", [])
    lines = [line for r in reports for name, line in r.user_properties if name == "figure"]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(str(line))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy graph by component, exported once; tests that change it copy it first."""
    from exported_toy import MOST, toy
    from fr_export import export

    folder = tmp_path_factory.mktemp("exported") / "toy"
    export(toy(), folder, batch=f"1:4:{MOST}")
    return folder
