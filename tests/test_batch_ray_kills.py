"""Ray's driver and actors killed: no photo is lost, done twice or half written. `make soak` does more of it."""

from pathlib import Path
from typing import Any

import pytest

from batch_cli import fast
from fr_bench.soak_ray import actor_kills, driver_kills

__all__ = ["fast"]  # a fixture
pytestmark = pytest.mark.slow


def test_the_driver_is_killed_again_and_again(fast: Path, record_property: Any) -> None:
    record_property("figure", driver_kills(fast, items=80, kills=3))


def test_the_actor_is_killed_again_and_again(fast: Path, record_property: Any) -> None:
    figures = actor_kills(fast, items=220, kills=6)
    assert figures["items_begun_again"] > 0
    record_property("figure", figures)
