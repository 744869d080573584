"""The part of docs/verification.md that results of a GPU write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN, END = "<!-- written by fr_bench.verification -->", "<!-- end -->"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step."""

    part: str
    name: str
    proves: str
    passed: bool
    seconds: float
    rehearsed: bool
    device: str
    date: str
    commit: str
    torch: str
    triton: str
    tail: str
    """The last lines it printed."""


def section(outcomes: Sequence[Outcome]) -> str:
    """One line a step and GPU, its latest outcome; rehearsals prove nothing and are left out."""
    latest = {(o.part, o.name, o.device): o for o in outcomes if not o.rehearsed}
    if not latest:
        return "Nothing yet: no step of `make gpu-suite` has run on a GPU.\n"
    head = "| step | proves | GPU | outcome | date | commit | torch, Triton |\n|---|---|---|---|---|---|---|\n"
    rows = [
        f"| {o.part}: {o.name} | {o.proves} | {o.device} | {'passed' if o.passed else 'failed'} | {o.date[:10]} | "
        f"{o.commit[:10]} | {o.torch}, {o.triton} |\n"
        for o in latest.values()
    ]
    return head + "".join(rows)


def write_section(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Replace what stands between the two marks of a file.

    Raises:
        ValueError: the file has no such marks.
    """
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} ... {END}")
    path.write_text(f"{before}{BEGIN}\n{section(outcomes)}{END}{after}")
