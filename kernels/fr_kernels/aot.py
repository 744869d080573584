"""Compiles every Triton kernel ahead of time, without a GPU, and reports what the compiler made of it.

    python -m fr_kernels.aot [-o kernels/aot.csv] [--keep kernels/aot.csv] [--op NAME] [--sm 90] [--principal] [-j 2]

One row per op, specialization and architecture: registers, stack, spills, shared memory, matrix instructions and
128-bit loads. Exits 1 where a row breaks a rule: a spill, more shared memory than the architecture has, or a dot of
16-bit inputs without a matrix instruction. Rows of a table that is kept are compiled again only where their source
or the compiler is another. Must run without TRITON_INTERPRET.
"""

import argparse
import csv
import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fr_kernels.launch import Specialization, triton_ops

ARCHITECTURES = (80, 89, 90, 100, 120)
# Bytes one block may use (CUDA programming guide, table of compute capabilities).
SHARED_LIMIT = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
# In PTX: ptxas makes each of these one instruction. Disassembling the cubins to count them took half of the time.
MATRIX = re.compile(
    r"^\s*(?:@!?%p\d+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", re.MULTILINE
)
LOAD128 = re.compile(
    r"ld\.global[\w.:]*\.(?:v4\.b32|v2\.b64|v8\.b32|v4\.b64)|cp\.async\.cg\.shared\.global \[|cp\.async\.bulk\.tensor"
)


@dataclass(frozen=True)
class Row:
    """What the compiler says of one cubin."""

    triton: str
    """Version of the compiler."""
    source: str
    """Hash of what it was given: the kernel's text and line, its constants, types and options."""
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
    """Matrix instructions."""
    loads128: int
    """Loads of 128 bits or more from global memory."""

    def broken(self, spec: Specialization) -> list[str]:
        """The rules this row breaks."""
        rules = {
            f"{self.spills} bytes of spills": self.spills > 0,
            f"{self.shared} bytes of shared memory > {SHARED_LIMIT[self.sm]}": self.shared
            > SHARED_LIMIT[self.sm],
            "no matrix instruction": spec.matrix and self.matrix == 0,
        }
        return [text for text, broken in rules.items() if broken]


@cache
def specializations(op: str) -> list[Specialization]:
    """What the op declares, `specializations()` of its `triton_impl`, and the principal ones in bfloat16."""
    declared = importlib.import_module(f"fr_kernels.{op}.triton_impl").specializations()
    return [*declared, *(_in_bfloat16(s) for s in declared if s.principal and "fp16" in s.name)]


def _in_bfloat16(spec: Specialization) -> Specialization:
    signature = {name: kind.replace("fp16", "bf16") for name, kind in spec.signature.items()}
    return replace(spec, name=spec.name.replace("fp16", "bf16"), signature=signature)


def compile_for(spec: Specialization, sm: int) -> tuple[Any, str]:
    """Triton's compiled kernel, and what ptxas said of it.

    With the divisibility attributes that the launcher would add: without them a kernel reports spills and narrow
    loads that no run has. What ptxas says is of the run that made the cubin, because its registers and spills depend
    on options that differ from one Triton to another.
    """
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": spec.settings.num_warps, "num_stages": spec.settings.num_stages}
    with knobs.compilation.scope(), knobs.nvidia.scope(), redirect_stdout(StringIO()) as said:
        knobs.compilation.always_compile = knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(_source(spec), target=GPUTarget("cuda", sm, 32), options=options)
    return compiled, said.getvalue()


def _source(spec: Specialization) -> Any:
    from triton.compiler import ASTSource

    names = spec.kernel.arg_names
    unknown = set(spec.signature) | set(spec.constants) ^ set(names)
    if set(spec.signature) | set(spec.constants) != set(names):
        raise ValueError(f"{spec.name}: arguments do not match {names}: {sorted(unknown)}")
    aligned = [n for n, t in spec.signature.items() if t.startswith("*") or n in spec.divisible]
    return ASTSource(
        fn=spec.kernel,
        signature={n: spec.signature.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in spec.constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )


def fingerprint(spec: Specialization) -> str:
    """Hash of all that decides what one compiler makes of a specialization on one architecture."""
    options = (spec.settings.num_warps, spec.settings.num_stages)
    return sha256(f"{_source(spec).hash()} {options}".encode()).hexdigest()[:16]


def report(op: str, spec: Specialization, sm: int) -> Row:
    """Compile one specialization for one architecture and read what came out."""
    import triton

    compiled, said = compile_for(spec, sm)
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", said)
    used = re.search(r"Used (\d+) registers", said)
    assert frame is not None, said
    assert used is not None, said
    ptx = compiled.asm["ptx"]
    return Row(
        triton=triton.__version__,
        source=fingerprint(spec),
        op=op,
        specialization=spec.name,
        sm=sm,
        warps=spec.settings.num_warps,
        registers=int(used[1]),
        stack=int(frame[1]),
        spills=int(frame[2]) + int(frame[3]),
        shared=compiled.metadata.shared,
        matrix=len(MATRIX.findall(ptx)),
        loads128=len(LOAD128.findall(ptx)),
    )


def read_table(path: Path) -> list[Row]:
    """The rows of a file written with `-o`."""
    numbers = {field.name for field in fields(Row) if field.type is int}
    with path.open(newline="") as file:
        lines: list[dict[str, Any]] = list(csv.DictReader(file))
    for line in lines:
        line.update({name: int(line[name]) for name in numbers})
    return [Row(**line) for line in lines]


def rows(
    wanted: Sequence[tuple[str, Specialization, int]], jobs: int, kept: Sequence[Row] = ()
) -> Iterator[tuple[Row, Specialization]]:
    """The row of each op, specialization and architecture wanted, in order; `jobs` processes compile those not kept."""
    import triton

    known = {(row.triton, row.source, row.op, row.specialization, row.sm): row for row in kept}
    found = [
        known.get((triton.__version__, fingerprint(spec), op, spec.name, sm))
        for op, spec, sm in wanted
    ]
    missing = [
        (op, spec.name, sm)
        for (op, spec, sm), row in zip(wanted, found, strict=True)
        if row is None
    ]
    # Spawned: a process that has started torch's threads cannot fork safely.
    spawn = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(jobs, spawn, _cache, (folder,)) as pool,
    ):
        made = pool.map(_report_by_name, missing)
        for (_, spec, _), row in zip(wanted, found, strict=True):
            yield row or next(made), spec


def _cache(folder: str) -> None:
    """Compile into a folder that goes away: a whole table is hundreds of megabytes."""
    os.environ["TRITON_CACHE_DIR"] = folder


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
    parser.add_argument("--keep", type=Path, help="a table whose rows need not be compiled again")
    parser.add_argument("--op", action="append", choices=triton_ops())
    parser.add_argument("--sm", action="append", type=int, choices=ARCHITECTURES)
    parser.add_argument(
        "--principal", action="store_true", help="the main forms of each kernel alone"
    )
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    table: list[Row] = []
    failed = 0
    wanted = [
        (op, spec, sm)
        for op in given.op or triton_ops()
        for spec in specializations(op)
        for sm in given.sm or ARCHITECTURES
        if spec.principal or not given.principal
    ]
    print(*(field.name for field in fields(Row)), sep=",")
    for row, spec in rows(wanted, given.jobs, read_table(given.keep) if given.keep else ()):
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
