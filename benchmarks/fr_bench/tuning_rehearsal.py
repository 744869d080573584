"""`python -m fr_kernels.tune` without a GPU: the search, its gate and its file, on the interpreter's own wall times.

    TRITON_INTERPRET=1 python -m fr_bench.tuning_rehearsal -o DIR [--op NAME]

The interpreter takes the same time whatever the warps and stages, and less for larger tiles: what is found says nothing
of a GPU, and no launcher reads the file.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from fr_bench.timing import interleave
from fr_kernels.dispatch import interpreting
from fr_kernels.launch import triton_ops
from fr_kernels.measured import Entry, read, write
from fr_kernels.tune import Say, measure, origin, tunables

NAME = "interpreter"
"""No GPU is called so: `fr_kernels.measured` looks for a file by the GPU's name."""


def rehearse(op: str, out: Path, say: Say) -> dict[str, Entry]:
    """Search the settings of one op at small shapes, write them, and read them back.

    Args:
        op: a Triton op.
        out: folder of the file.
        say: told every step.

    Returns:
        What stands in the file.

    Raises:
        RuntimeError: nothing was offered to the search, or the file is not what was measured.
    """
    small = [t for t in tunables(op, small=True) if "float32" not in t.name]
    entries = measure(small, torch.device("cpu"), _wall_clock, say)
    path = out / f"{NAME}.json"
    write(path, NAME, op, origin(), entries)
    kept = read(path)[op]
    if not entries or kept != entries:
        raise RuntimeError(f"{op}: {len(entries)} entries measured; {path} holds {len(kept)}")
    return kept


def _wall_clock(calls: Mapping[str, Callable[[], object]]) -> dict[str, Sequence[float]]:
    return {name: timing.samples for name, timing in interleave(calls, repeats=3).items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fr_bench.tuning_rehearsal", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--op", default="phase_shuffle", choices=triton_ops(), help="[%(default)s]")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if not interpreting():
        sys.exit(
            "Triton must run interpreted: TRITON_INTERPRET=1 python -m fr_bench.tuning_rehearsal ..."
        )
    entries = rehearse(given.op, given.output, print)
    print(f"{given.op}: {len(entries)} entries written to {given.output / NAME}.json and read back")


if __name__ == "__main__":
    main()
