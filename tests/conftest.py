"""Triton kernels run interpreted in the tests, but for `pytest -m gpu`. Compiled forms: `fr_kernels.aot`."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set before any test module is imported, because a kernel's decorator reads it."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
