"""Every CUDA C++ kernel compiled for each GPU generation, without a GPU: the committed table, NVRTC and nvcc."""

import csv
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fr_kernels import aot_cuda, nvrtc
from fr_kernels.aot import ARCHITECTURES, write_table
from fr_kernels.sources import cuda_source, cuda_source_names
from kernel_checks import NO_NVRTC, has_nvrtc

TABLE = Path(__file__).parents[1] / "kernels" / "aot_cuda.csv"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
COMMAND = "python -m fr_kernels.aot_cuda -o kernels/aot_cuda.csv"


def _table() -> list[aot_cuda.Row]:
    texts = {"compiler", "source", "digest", "kernel"}
    with TABLE.open() as file:
        return [
            aot_cuda.Row(**{k: v if k in texts else int(v) for k, v in line.items()})
            for line in csv.DictReader(file)
        ]


def test_the_table_is_of_the_sources_as_they_are() -> None:
    """Every kernel of every source at every architecture, and of this text."""
    wanted = {
        (name, aot_cuda.digest(name), kernel, sm)
        for name in cuda_source_names()
        for kernel in aot_cuda.kernels(name)
        for sm in ARCHITECTURES
    }
    assert len(wanted) == (5 + 2) * 5
    assert {(r.source, r.digest, r.kernel, r.sm) for r in _table()} == wanted, f"run: {COMMAND}"


def test_the_committed_table_breaks_no_rule() -> None:
    assert [row for row in _table() if row.broken()] == []


def test_what_ptxas_says_is_read() -> None:
    said = """ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 129 registers, used 1 barriers, 8 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
"""
    a, b = aot_cuda.read(said, "nvrtc 1.2", "face_warp", 90)
    assert (a.kernel, a.registers, a.stack, a.spills, a.shared) == ("a", 40, 0, 0, 0)
    assert (b.kernel, b.registers, b.stack, b.spills, b.shared) == ("b", 129, 8, 16, 4096)
    assert a.broken() == []
    assert b.broken() == ["8 bytes of stack", "16 bytes of spills", "129 registers > 128"]


def test_a_table_is_written_as_it_is_read(tmp_path: Path) -> None:
    write_table(tmp_path / "again.csv", _table())
    assert (tmp_path / "again.csv").read_text() == TABLE.read_text()


def test_a_broken_rule_is_named_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spilled = replace(_table()[0], spills=8)
    monkeypatch.setattr(aot_cuda, "rows", lambda *_: [spilled])
    assert aot_cuda.main(["-o", str(tmp_path / "table.csv")]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"{spilled.kernel} sm_{spilled.sm}: 8 bytes of spills\n"
    assert printed.out == (tmp_path / "table.csv").read_text()


@pytest.mark.skipif(not has_nvrtc(), reason=NO_NVRTC)
@pytest.mark.parametrize("source", cuda_source_names())
def test_nvrtc_gives_the_committed_table(source: str) -> None:
    """Row for row where NVRTC is the table's; with another version, the rules alone."""
    expected = [row for row in _table() if row.source == source]
    made = list(aot_cuda.rows([source], ARCHITECTURES))
    assert [row for row in made if row.broken()] == []
    if expected[0].compiler == f"nvrtc {nvrtc.version()}":
        assert made == expected
    kernels = [(row.kernel, row.sm) for row in made]
    assert kernels == [(row.kernel, row.sm) for row in expected]


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("source", cuda_source_names())
@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_nvcc_breaks_no_rule_either(sm: int, source: str, tmp_path: Path) -> None:
    (tmp_path / "source.cu").write_text(cuda_source(source))
    command = [str(NVCC), "-cubin", "-std=c++17", f"-arch=sm_{sm}", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "source.cu", "-o", "source.cubin"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = aot_cuda.read(done.stderr, "nvcc", source, sm)
    assert [row.kernel for row in made] == aot_cuda.kernels(source), done.stderr
    assert [asdict(row) for row in made if row.broken()] == []
