"""Every Triton kernel compiled ahead of time for each GPU generation, without a GPU: no spills, matrix instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from fr_kernels import aot
from fr_kernels.launch import Settings, Specialization

ROOT = Path(__file__).parents[1]
TABLES = [ROOT / "kernels" / name for name in ("aot.csv", "aot-oldest.csv")]
OURS = [table for table in TABLES if aot.read_table(table)[0].triton == triton.__version__]
"""The table of the compiler at hand."""


def compiled(tmp_path: Path, *arguments: str | Path) -> list[aot.Row]:
    """The table that `python -m fr_kernels.aot` writes, in a process whose kernels are not interpreted."""
    path = tmp_path / "aot.csv"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fr_kernels.aot", "-o", path, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return aot.read_table(path)


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_table_covers_every_form_and_architecture(table: Path) -> None:
    expected = {
        (op, spec.name, sm)
        for op in aot.triton_ops()
        for spec in aot.specializations(op)
        for sm in aot.ARCHITECTURES
    }
    rows = aot.read_table(table)
    assert {(row.op, row.specialization, row.sm) for row in rows} == expected
    assert len(rows) == len(expected)
    assert len({row.triton for row in rows}) == 1


@pytest.mark.parametrize("op", aot.triton_ops())
def test_every_kernel_has_a_principal_form_and_every_half_one_a_twin(op: str) -> None:
    forms = aot.specializations(op)
    main = [form for form in forms if form.principal]
    assert {form.kernel.__name__ for form in main} == {form.kernel.__name__ for form in forms}
    twins = {form.name: form for form in main if "bf16" in form.name}
    halves = [form for form in main if "fp16" in form.name]
    assert {form.name.replace("fp16", "bf16") for form in halves} == set(twins)
    for form in halves:
        twin = twins[form.name.replace("fp16", "bf16")]
        assert "*bf16" in twin.signature.values()
        assert "*fp16" not in twin.signature.values()
        assert twin.matrix == form.matrix


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.stem)
def test_a_committed_table_breaks_no_rule(table: Path) -> None:
    specs = {(op, s.name): s for op in aot.triton_ops() for s in aot.specializations(op)}
    for row in aot.read_table(table):
        assert row.broken(specs[row.op, row.specialization]) == [], row


def test_a_rule_can_be_broken() -> None:
    spec = Specialization("x", None, {}, {}, Settings({}), matrix=True)
    row = aot.Row("3.7.1", "", "op", "x", 89, 4, 255, 0, 8, 101_377, 0, 0)
    assert len(row.broken(spec)) == 3


@pytest.mark.oldest
@pytest.mark.skipif(not OURS, reason="another Triton than the tables'")
def test_the_table_is_of_these_sources(tmp_path: Path) -> None:
    """A row whose kernel, constants or settings changed since is compiled again, and differs at least in its hash."""
    (table,) = OURS
    assert compiled(tmp_path, "--keep", table) == aot.read_table(table)


@pytest.mark.slow
@pytest.mark.oldest
@pytest.mark.timeout(1200)
def test_compiling_keeps_the_rules(tmp_path: Path) -> None:
    """And gives the committed rows, bit for bit, where the compiler is a table's."""
    rows = compiled(tmp_path, "--principal", *(f"--sm={sm}" for sm in aot.ARCHITECTURES))
    expected = {(r.op, r.specialization, r.sm): r for t in OURS for r in aot.read_table(t)}
    principal = [s for op in aot.triton_ops() for s in aot.specializations(op) if s.principal]
    assert len(rows) == len(aot.ARCHITECTURES) * len(principal)
    if OURS:
        assert rows == [expected[row.op, row.specialization, row.sm] for row in rows]
