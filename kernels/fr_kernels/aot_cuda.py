"""Compiles every CUDA C++ source of `csrc/` with NVRTC, without a GPU, and reports what the compiler made of it.

    python -m fr_kernels.aot_cuda [-o kernels/aot_cuda.csv]

One row per kernel and architecture: registers, stack, spills, shared memory. Exits 1 where a row breaks a rule: a
stack, a spill, or more registers than leave room for two blocks of 256 threads. Needs cuda-python and NVRTC:
pip install "fr-deploy[cuda]".
"""

import argparse
import hashlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fr_kernels import nvrtc
from fr_kernels.aot import ARCHITECTURES, write_table
from fr_kernels.sources import cuda_source, cuda_source_names

MOST_REGISTERS = 128  # x 256 threads x 2 blocks: the 65536 registers of a multiprocessor
_KERNEL = re.compile(
    r"entry function '(?P<kernel>\w+)' for 'sm_\d+'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill "
    r"stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Row:
    """What ptxas says of one kernel."""

    compiler: str
    """And its version, such as "nvrtc 13.5"."""
    source: str
    digest: str
    """First 12 digits of the SHA-256 of the source's text: another text is another row."""
    kernel: str
    sm: int
    registers: int
    stack: int
    spills: int
    """Bytes of spill stores and loads together."""
    shared: int

    def broken(self) -> list[str]:
        """The rules this row breaks."""
        rules = {
            f"{self.stack} bytes of stack": self.stack > 0,
            f"{self.spills} bytes of spills": self.spills > 0,
            f"{self.registers} registers > {MOST_REGISTERS}": self.registers > MOST_REGISTERS,
        }
        return [text for text, broken in rules.items() if broken]


def kernels(source: str) -> list[str]:
    """Names of the `extern "C"` kernels of a source, sorted."""
    return sorted(re.findall(r"__global__[^;{]*?(\w+)\(\s", cuda_source(source)))


def digest(source: str) -> str:
    """As `Row.digest`."""
    return hashlib.sha256(cuda_source(source).encode()).hexdigest()[:12]


def read(said: str, compiler: str, source: str, sm: int) -> list[Row]:
    """Rows from what ptxas said with -v, sorted by kernel."""
    found = [
        Row(compiler, source, digest(source), m["kernel"], sm, int(m["registers"]), int(m["stack"]),
            int(m["stores"]) + int(m["loads"]), _shared(m["rest"]))
        for m in _KERNEL.finditer(said)
    ]  # fmt: skip
    return sorted(found, key=lambda row: row.kernel)


def rows(sources: list[str], architectures: tuple[int, ...]) -> Iterator[Row]:
    """Every row of these sources and architectures, in order."""
    for source in sources:
        for sm in architectures:
            said = io.StringIO()
            nvrtc.compiled(source, f"sm_{sm}", said)
            yield from read(said.getvalue(), f"nvrtc {nvrtc.version()}", source, sm)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fr_kernels.aot_cuda", description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--source", action="append", choices=cuda_source_names())
    parser.add_argument("--sm", action="append", type=int, choices=ARCHITECTURES)
    given = parser.parse_args(arguments)
    table: list[Row] = []
    print(*(field.name for field in fields(Row)), sep=",")
    for row in rows(given.source or cuda_source_names(), tuple(given.sm or ARCHITECTURES)):
        table.append(row)
        print(*asdict(row).values(), sep=",", flush=True)
    if given.output is not None:
        write_table(given.output, table)
    broken = [f"{row.kernel} sm_{row.sm}: {rule}" for row in table for rule in row.broken()]
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    return 1 if broken else 0


def _shared(rest: str) -> int:
    found = re.search(r"(\d+) bytes smem", rest)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
