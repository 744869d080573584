"""Compiles every Triton kernel ahead of time, without a GPU, and reports what the compiler made of it.

    python -m fr_kernels.aot [-o kernels/aot.csv] [--op NAME] [--sm 90] [-j 2]

One row per op, specialization and architecture: registers, stack, spills, shared memory, matrix instructions and
128-bit loads. Exits 1 where a row breaks a rule: a spill, more shared memory than the architecture has, or a dot of
16-bit inputs without a matrix instruction. Must run without TRITON_INTERPRET.
"""

import argparse
import csv
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fr_kernels.launch import Specialization, triton_ops

ARCHITECTURES = (80, 89, 90, 100, 120)
# Bytes one block may use (CUDA programming guide, table of compute capabilities).
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
MATRIX = re.compile(r"^(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA|OMMA|QMMA)\b")


@dataclass(frozen=True)
class Row:
    """What ptxas and the disassembler say of one cubin."""

    triton: str
    """Version of the compiler."""
    op: str
    specialization: str
    sm: int
    warps: int
    registers: int
    stack: int
    spills: int
    """Bytes of spill stores and loads together."""
    shared: int
    matrix: int
    loads128: int

    def broken(self, spec: Specialization) -> list[str]:
        """The rules this row breaks."""
        rules = {
            f"{self.spills} bytes of spills": self.spills > 0,
            f"{self.shared} bytes of shared memory > {SHARED_LIMIT[self.sm]}": self.shared
            > SHARED_LIMIT[self.sm],
            "no matrix instruction": spec.matrix and self.matrix == 0,
        }
        return [text for text, broken in rules.items() if broken]


def specializations(op: str) -> list[Specialization]:
    """What the op declares: `specializations()` of its `triton_impl`."""
    module = importlib.import_module(f"fr_kernels.{op}.triton_impl")
    return module.specializations()


def compile_for(spec: Specialization, sm: int) -> Any:
    """Triton's compiled kernel, with the divisibility attributes that the launcher would add.

    Without them a kernel reports spills and narrow loads that no run has.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = spec.kernel.arg_names
    unknown = set(spec.signature) | set(spec.constants) ^ set(names)
    if set(spec.signature) | set(spec.constants) != set(names):
        raise ValueError(f"{spec.name}: arguments do not match {names}: {sorted(unknown)}")
    aligned = [n for n, t in spec.signature.items() if t.startswith("*") or n in spec.divisible]
    signature = {n: spec.signature.get(n, "constexpr") for n in names}
    source = ASTSource(
        fn=spec.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in spec.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": spec.settings.num_warps, "num_stages": spec.settings.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)


def report(op: str, spec: Specialization, sm: int) -> Row:
    """Compile one specialization for one architecture and read what came out."""
    compiled = compile_for(spec, sm)
    registers, stack, spills = _resources(compiled.asm["ptx"], sm)
    matrix, loads128 = _instructions(compiled.asm["cubin"])
    return Row(
        _version(), op, spec.name, sm, spec.settings.num_warps, registers, stack, spills,
        compiled.metadata.shared, matrix, loads128,
    )  # fmt: skip


def _version() -> str:
    import triton

    return triton.__version__


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _resources(ptx: str, sm: int) -> tuple[int, int, int]:
    """(registers, stack bytes, spill bytes) as ptxas prints them."""
    target = re.search(r"\.target (\w+)", ptx)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        ptxas = _tool("ptxas-blackwell" if sm >= 100 else "ptxas")
        command = [ptxas, "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", said)
    used = re.search(r"Used (\d+) registers", said)
    assert frame is not None, said
    assert used is not None, said
    return int(used[1]), int(frame[1]), int(frame[2]) + int(frame[3])


def _instructions(cubin: bytes) -> tuple[int, int]:
    """(matrix instructions, 128-bit global loads) in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_tool("nvdisasm"), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", text)
    wide = sum(bool(re.match(r"(LDG|LDGSTS)\.E\.(\w+\.)*128|UTMALDG", name)) for name in code)
    return sum(bool(MATRIX.match(name.split(".")[0])) for name in code), wide


def rows(
    ops: list[str], architectures: tuple[int, ...], jobs: int
) -> Iterator[tuple[Row, Specialization]]:
    """Every row of these ops and architectures, in order; `jobs` processes compile."""
    wanted = [(op, spec, sm) for op in ops for spec in specializations(op) for sm in architectures]
    # Spawned: a process that has started torch's threads cannot fork safely.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        made = pool.map(_report_by_name, [(op, spec.name, sm) for op, spec, sm in wanted])
        for (_, spec, _), row in zip(wanted, made, strict=True):
            yield row, spec


def _report_by_name(wanted: tuple[str, str, int]) -> Row:
    """`report` of a specialization named instead of passed: a kernel cannot be pickled."""
    op, name, sm = wanted
    return report(op, next(spec for spec in specializations(op) if spec.name == name), sm)


def write_table(path: Path, table: Sequence[Any]) -> None:
    """Dataclasses of one kind, at least one, as a CSV file whose header is their fields."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(table[0])])
        writer.writerows(asdict(row).values() for row in table)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fr_kernels.aot", description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--op", action="append", choices=triton_ops())
    parser.add_argument("--sm", action="append", type=int, choices=ARCHITECTURES)
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    table: list[Row] = []
    failed = 0
    architectures = tuple(given.sm or ARCHITECTURES)
    print(*(field.name for field in fields(Row)), sep=",")
    for row, spec in rows(given.op or triton_ops(), architectures, given.jobs):
        table.append(row)
        print(*asdict(row).values(), sep=",", flush=True)
        for rule in row.broken(spec):
            failed += 1
            print(f"{row.op} {row.specialization} sm_{row.sm}: {rule}", file=sys.stderr)
    if given.output is not None:
        write_table(given.output, table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
