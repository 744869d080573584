"""`python -m fr_bench.soak [NAME...]`: hours of the same in minutes; figures go to benchmarks/results/soak.json."""

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fr_bench.machine import this_machine
from fr_bench.soak_local import group_kills, memory
from fr_bench.soak_ray import actor_kills, driver_kills
from fr_deploy.errors import FrDeployError, UsageError

Soak = Callable[[Path], dict[str, Any]]
RESULTS = Path(__file__).parents[1] / "results" / "soak.json"


def ray(folder: Path) -> dict[str, Any]:
    """Ten SIGKILLs of the driver, then twenty of the actor."""
    (folder / "driver").mkdir()
    (folder / "actor").mkdir()
    return {
        "ray": _version("ray"),
        "driver": driver_kills(folder / "driver", items=600, kills=10),
        "actor": actor_kills(folder / "actor", items=900, kills=20),
    }


def kills(folder: Path) -> dict[str, Any]:
    """A hundred SIGKILLs of the process group over 2,500 photos."""
    return group_kills(folder, items=2500, kills=100)


def steady(folder: Path) -> dict[str, Any]:
    """Memory after 1,000 and after 45,000 of 50,000 photos."""
    return memory(folder, items=50_000)


SOAKS: Mapping[str, Soak] = {"kills": kills, "steady": steady, "ray": ray}
"""By name; each takes an empty folder, returns figures, and raises FrDeployError if what it proves is not so."""


def main(names: Sequence[str], results: Path = RESULTS) -> None:
    """Run soaks, and append an entry for each.

    Args:
        names: of them; none: all.
        results: a JSON list.

    Raises:
        UsageError: there is no such soak.
        FrDeployError: one of them failed; its entry is not written.
    """
    unknown = set(names) - SOAKS.keys()
    if unknown:
        raise UsageError(
            f"no soak is called {', '.join(sorted(unknown))}; there are {', '.join(SOAKS)}"
        )
    for name in names or list(SOAKS):
        machine = this_machine()
        shm = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
            figures = SOAKS[name](Path(folder))
        date = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"soak": name, "date": date, **asdict(machine), "figures": figures}
        print(json.dumps(entry), flush=True)
        entries = json.loads(results.read_text()) if results.exists() else []
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps([*entries, entry], indent=1) + "\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except FrDeployError as error:
        print(f"fr_bench.soak: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
