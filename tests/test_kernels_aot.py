"""Every Triton kernel compiled ahead of time for each GPU generation, without a GPU: no spills, matrix instructions."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from fr_kernels import aot
from fr_kernels.launch import Settings, Specialization

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "kernels" / "aot.csv"


def compiled(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`python -m fr_kernels.aot`, in a process whose kernels are not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fr_kernels.aot", "-o", str(tmp_path / "aot.csv"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, tmp_path / "aot.csv"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_table_covers_every_op_and_architecture() -> None:
    table = rows(TABLE)
    assert {row["op"] for row in table} == set(aot.triton_ops())
    for op in aot.triton_ops():
        assert {int(row["sm"]) for row in table if row["op"] == op} == set(aot.ARCHITECTURES)
        names = {spec.name for spec in aot.specializations(op)}
        assert {row["specialization"] for row in table if row["op"] == op} == names


def test_the_committed_table_breaks_no_rule() -> None:
    specs = {(op, s.name): s for op in aot.triton_ops() for s in aot.specializations(op)}
    for line in rows(TABLE):
        text = {"triton", "op", "specialization"}
        row = aot.Row(**{k: v if k in text else int(v) for k, v in line.items()})
        assert row.broken(specs[row.op, row.specialization]) == [], line


def test_a_rule_can_be_broken() -> None:
    spec = Specialization("x", None, {}, {}, Settings({}), matrix=True)
    row = aot.Row("3.7.1", "op", "x", 89, 4, 255, 0, 8, 101_377, 0, 0)
    assert len(row.broken(spec)) == 3


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("op", aot.triton_ops())
def test_compiling_gives_the_committed_table(op: str, tmp_path: Path) -> None:
    """Bit for bit where the compiler is the table's; with another version, the rules alone."""
    done, path = compiled(tmp_path, "--op", op)
    assert done.returncode == 0, done.stderr
    expected = [row for row in rows(TABLE) if row["op"] == op]
    if expected[0]["triton"] == triton.__version__:
        assert rows(path) == expected
    else:
        assert len(rows(path)) == len(expected)
