"""The rows of benchmarks/results: one technique, one shape, its time and its quality."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fr_bench.machine import Machine
from fr_deploy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Row(Machine):
    """One measured technique; the order of the fields is the header of the CSV file."""

    date: str
    """UTC, ISO 8601."""
    technique: str
    model: str
    size: int
    batch: int
    repeats: int
    best_ms: float
    p20_ms: float
    p50_ms: float
    p80_ms: float
    psnr_db: float | None
    """Against the reference technique's bytes; empty when no byte differs."""
    max_difference: int
    """Largest difference to the reference technique's bytes, of 255."""


def header(kind: type[Machine]) -> list[str]:
    """The columns of a kind of row."""
    return [field.name for field in fields(kind)]


def append_rows(path: Path, rows: Sequence[Machine], kind: type[Machine] = Row) -> None:
    """Append rows of one kind to a CSV file, which is created with its header.

    Raises:
        UsageError: the file has another header, so it was written by another version.
    """
    new = not path.exists()
    if not new:
        _check_header(path, header(kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, header(kind), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def append_json(path: Path, document: dict[str, Any]) -> str:
    """Append a document to a JSON-lines file; returns the line."""
    line = json.dumps(document, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(line + "\n")
    return line


def _check_header(path: Path, expected: list[str]) -> None:
    with path.open(newline="") as file:
        found = next(csv.reader(file), [])
    if found != expected:
        unlike = sorted(set(found) ^ set(expected)) or "the order"
        raise UsageError(
            f"{path} has other columns than this version writes ({unlike}); move it away: mv {path} {path}.old"
        )
