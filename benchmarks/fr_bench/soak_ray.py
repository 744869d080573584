"""`serve-batch --ray` under SIGKILL: of the driver's process group, and of the actor."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fr_bench.killing import family
from fr_bench.soak_runs import (
    Run,
    compare,
    kill_again_and_again,
    make_photos,
    records,
    wait_for_a_record,
)


def driver_kills(folder: Path, *, items: int, kills: int) -> dict[str, Any]:
    """SIGKILL to the process group of a run under Ray, again and again; then to its end without Ray.

    Args:
        folder: empty; takes photos and results.
        items: photos.
        kills: how many.

    Returns:
        Figures.

    Raises:
        FrDeployError: something was lost, done twice, torn, or differs from a run without Ray.
    """
    began = time.monotonic()
    source, out = make_photos(folder / "in", items), folder / "out"
    gone = kill_again_and_again(source, out, "--ray", kills=kills, chance=random.Random(1))
    compare(source, out, folder / "embedded", items)
    return {
        "items": items,
        "driver_kills": kills,
        "longest_until_all_processes_gone_s": round(gone, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def actor_kills(folder: Path, *, items: int, kills: int) -> dict[str, Any]:
    """SIGKILL to the actor of one run under Ray, again and again, while it goes on.

    Args, Returns, Raises: as `driver_kills`.
    """
    began, chance = time.monotonic(), random.Random(2)
    source, out = make_photos(folder / "in", items), folder / "out"
    with Run(source, out, "--ray") as run:
        for _ in range(kills):
            wait_for_a_record(run, out)
            time.sleep(chance.uniform(0, 0.3))
            run.wait(lambda: bool(actors_of(run)), "an actor")
            os.kill(actors_of(run)[0], signal.SIGKILL)
        run.end()
    compare(source, out, folder / "embedded", items)
    attempts = Counter(record.attempts for record in records(out))
    return {
        "items": items,
        "actor_kills": kills,
        "items_begun_again": sum(count for times, count in attempts.items() if times > 1),
        "most_attempts": max(attempts),
        "seconds": round(time.monotonic() - began, 1),
    }


def actors_of(run: Run) -> list[int]:
    """The actors of a run that live."""
    return [pid for pid, name in family(run.process.pid).items() if "ray::RayActor" in name]
