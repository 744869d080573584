"""What a plot shows of pipeline.csv: of each machine, model and number format the latest run at every batch."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fr_bench.pipeline import PipelineRow
from fr_bench.rows import header
from fr_deploy.errors import NoInputError, UsageError

Row = dict[str, str]
"""A line of the file, by the names of `PipelineRow`."""


@dataclass(frozen=True)
class Point:
    """One technique at one batch, in images a second."""

    technique: str
    batch: int
    low: float
    """At the 80th percentile of the times."""
    median: float
    high: float
    """At the 20th."""


@dataclass(frozen=True)
class Series:
    """One machine, model and number format."""

    title: str
    points: list[Point]
    """Batches ascending, techniques in the order of the run: each adds one thing to one before it."""

    def at(self, batch: int) -> list[Point]:
        """Every technique at one batch.

        Raises:
            UsageError: it was not measured.
        """
        found = [point for point in self.points if point.batch == batch]
        if not found:
            there = ", ".join(map(str, sorted({point.batch for point in self.points})))
            raise UsageError(f"batch {batch} was not measured; there are: {there}")
        return found

    def techniques(self) -> dict[str, list[Point]]:
        """Every technique over the batches."""
        names = dict.fromkeys(point.technique for point in self.points)
        return {name: [p for p in self.points if p.technique == name] for name in names}


def read_series(path: Path, **wanted: str | None) -> Series:
    """Read a machine's latest runs.

    Args:
        path: as `fr-deploy bench pipeline` writes it.
        wanted: `device`, `model` and `dtype`; what is None is that of the last row that fits the others.

    Raises:
        NoInputError: no such file, or no row.
        UsageError: other columns, or no row fits.
    """
    rows = _read(path)
    fitting = [row for row in rows if all(v in (None, row[k]) for k, v in wanted.items())]
    if not fitting:
        there = "\n".join(dict.fromkeys(f"  {' | '.join(_place(row))}" for row in rows))
        asked = ", ".join(f"{k} {v}" for k, v in wanted.items() if v is not None)
        raise UsageError(
            f"{path} has no row of {asked}; device, CPU, model and dtype are:\n{there}"
        )
    latest = _latest([row for row in fitting if _place(row) == _place(fitting[-1])])
    return Series(_title(latest), [_point(row) for row in latest])


def _read(path: Path) -> list[Row]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows, found = list(reader), reader.fieldnames or []
    except OSError as error:
        raise NoInputError(
            f"{path}: {error.strerror}; make it with: fr-deploy bench pipeline -o {path.parent}"
        ) from error
    if missing := sorted(set(header(PipelineRow)) - set(found)):
        raise UsageError(
            f"{path} lacks columns of `fr-deploy bench pipeline`: {', '.join(missing)}"
        )
    if not rows:
        raise NoInputError(
            f"{path} has no row; add some: fr-deploy bench pipeline -o {path.parent}"
        )
    return rows


def _place(row: Row) -> tuple[str, ...]:
    return row["device"], row["cpu"], row["model"], row["dtype"]


def _run(row: Row) -> tuple[str, ...]:
    """What rows of one run share: it measures the rates of the device once."""
    return row["commit"], row["matmul_tflop_per_s"], row["copy_gb_per_s"]


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Of every batch the rows of the run that stands last in the file; times of two runs are never compared."""
    runs: dict[int, list[Row]] = {}
    for _, of_run in groupby(rows, _run):
        for batch, of_batch in groupby(of_run, lambda row: int(row["batch"])):
            runs[batch] = list(of_batch)
    return [row for batch in sorted(runs) for row in runs[batch]]


def _point(row: Row) -> Point:
    batch = int(row["batch"])
    low, median, high = (1e3 * batch / float(row[name]) for name in ("p80_ms", "p50_ms", "p20_ms"))
    return Point(row["technique"], batch, low, median, high)


def _title(rows: Sequence[Row]) -> str:
    """Machine, model, number format, versions, commits; and what makes the rows less than evidence."""
    last = rows[-1]
    place = (
        f"{last['cpu']}, {last['threads']} threads" if last["device"] == "cpu" else last["device"]
    )
    weights = " (random weights)" if last["random_weights"] == "True" else ""
    packages = ("fr_deploy", "torch", "diffusers")
    versions = [
        ", ".join(dict.fromkeys(f"{name} {row[name] or 'not installed'}" for row in rows))
        for name in packages
    ]
    commits = dict.fromkeys(
        row["commit"][:10] + (" + changes" if row["dirty"] == "True" else "") for row in rows
    )
    load = max(float(row["load"]) for row in rows)
    about = [*versions, f"commit {', '.join(commits)}", f"load before {load:g} or less"]
    return f"{last['model']}{weights}, {last['dtype']}, {place}\n{', '.join(about)}"
