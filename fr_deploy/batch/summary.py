"""What became of a run's items, in memory that does not grow with them; told at its end."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fr_deploy.batch.item import Record
from fr_deploy.batch.progress import span
from fr_deploy.display import printable
from fr_deploy.errors import FrDeployError, ImageError, NoInputError

EXAMPLES = 3
"""Items named for each reason; `fr-deploy serve-batch status` and the ledger know them all."""
STAGES = ("prepare", "restore", "finish")
UNEXPECTED = "unexpected"
_KINDS = 200  # reasons and warnings kept apart; what a message smuggled in beyond that is "other"
_WRITING = {"unwritable"}
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_DEGREES = tuple(float(edge) for edge in range(5, 90, 5))


class Histogram:
    """Counts between fixed edges: below the first, between two, from the last on."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        """Begin with none.

        Args:
            edges: rising.
        """
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)

    def add(self, value: float) -> None:
        """Count one value; an edge belongs to what follows it."""
        self.counts[bisect_right(self.edges, value)] += 1

    def bars(self) -> Iterator[tuple[str, int]]:
        """Label and count of each, from the first that has any to the last."""
        used = [index for index, count in enumerate(self.counts) if count]
        labels = [f"< {self.edges[0]:g}"]
        labels += [f"{a:g} to {b:g}" for a, b in zip(self.edges, self.edges[1:], strict=False)]
        labels.append(f">= {self.edges[-1]:g}")
        for index in range(used[0], used[-1] + 1) if used else ():
            yield labels[index], self.counts[index]


@dataclass
class Reason:
    """Failures of one kind."""

    count: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Name and message of the first few."""


@dataclass(frozen=True)
class Load:
    """How busy one stage was."""

    share: float
    """Of the time between its first task and its last that its processes worked, 0 to 1."""
    processes: int


@dataclass
class Tally:
    """Counts of records; of a million as small as of ten."""

    counts: Counter[str] = field(default_factory=Counter[str])
    """Of each status."""
    faces: int = 0
    blended: int = 0
    """Faces that the identity guard took back, wholly or in part."""
    output_bytes: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict[str, Reason])
    warnings: Counter[str] = field(default_factory=Counter[str])
    ms: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds of each step, all items together."""
    seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    """Of one item, all its steps."""
    angles: Histogram = field(default_factory=lambda: Histogram(_DEGREES))
    """Degrees that a face's identity moved."""

    @property
    def done(self) -> int:
        """Items with an outcome, failures among them."""
        return sum(self.counts.values())

    @property
    def failed(self) -> int:
        """Items that came to nothing."""
        return self.counts["failed"]

    def add(self, record: Record) -> None:
        """Count one record."""
        self.counts[record.status] += 1
        self.faces += len(record.faces)
        self.output_bytes += sum(output.size for output in record.outputs)
        self.warnings.update(_known(code, self.warnings) for code in record.warnings)
        for step, ms in record.ms.items():
            self.ms[step] = self.ms.get(step, 0.0) + ms
        if record.status == "failed":
            reason = self.reasons.setdefault(_known(record.reason, self.reasons), Reason())
            reason.count += 1
            if len(reason.examples) < EXAMPLES:
                reason.examples.append((record.name, record.message))
        elif record.ms:
            self.seconds.add(sum(record.ms.values()) / 1000)
        for face in record.faces:
            if face.get("angle") is not None:
                self.angles.add(face["angle"])
            self.blended += face.get("blend", 1.0) < 1.0

    def add_earlier(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Count outcomes of earlier starts, of which only status and reason are known."""
        for (status, code), count in counts.items():
            if count > 0:
                self.counts[status] += count
                if status == "failed":
                    self.reasons.setdefault(_known(code, self.reasons), Reason()).count += count

    def exit_code(self) -> int:
        """0 all well, 1 an unexpected error, 3 some items failed, 4 none could even be read."""
        if UNEXPECTED in self.reasons:
            return FrDeployError.exit_code
        if self.failed == self.done and not _WRITING & self.reasons.keys():
            return NoInputError.exit_code
        return ImageError.exit_code if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "counts": dict(self.counts),
            "faces": self.faces,
            "blended": self.blended,
            "output_bytes": self.output_bytes,
            "failures": {
                name: {"count": reason.count, "examples": reason.examples}
                for name, reason in self.reasons.items()
            },
            "warnings": dict(self.warnings),
            "ms": {name: round(value, 1) for name, value in self.ms.items()},
        }


def bottleneck(loads: Mapping[str, Load]) -> str:
    """The stage whose processes had the least time to spare; empty before anything was done."""
    name = max(loads, key=lambda name: loads[name].share, default="")
    return name if name and loads[name].share > 0 else ""


def summary_lines(
    tally: Tally, *, total: int | None, new: int, seconds: float, loads: Mapping[str, Load]
) -> Iterator[str]:
    """What is said at the end of a run.

    Args:
        tally: of all items, those of earlier starts included.
        total: of the list, as far as it is known.
        new: outcomes of this start.
        seconds: that this start took.
        loads: of each stage, in this start.
    """
    yield from failure_lines(tally)
    yield from _usage(loads)
    if tally.warnings:
        told = ", ".join(f"{printable(name)} {n}" for name, n in tally.warnings.most_common(8))
        yield f"remarks: {told}"
    if tally.blended:
        yield f"identity guard: {tally.blended} of {tally.faces} faces blended back"
    yield counts_line(tally, total)
    faces = f", {tally.faces} face{'s'[: tally.faces != 1]}" if tally.faces else ""
    rate = f", {new / seconds:.1f} a second" if new and seconds else ""
    earlier = f"; {tally.done - new} in earlier starts" if tally.done > new else ""
    yield f"{new} photo{'s'[: new != 1]}{faces} in {span(seconds)}{rate}{earlier}"


def counts_line(tally: Tally, total: int | None) -> str:
    """How many of a list have which outcome."""
    of_all = f" of {total}" if total is not None and total != tally.done else ""
    return f"{tally.done}{of_all} done: {_outcomes(tally)}"


def _outcomes(tally: Tally) -> str:
    labels = {
        "restored": "restored",
        "no_face": "without a face",
        "copied": "without a face, copied",
        "failed": "failed",
    }
    parts = [f"{tally.counts[key]} {text}" for key, text in labels.items() if tally.counts[key]]
    return ", ".join(parts) or "nothing"


def failure_lines(tally: Tally) -> Iterator[str]:
    """Each reason with its first examples, the commonest first."""
    for name, reason in sorted(tally.reasons.items(), key=lambda pair: -pair[1].count):
        yield f"failed: {reason.count} x {printable(name)}"
        for item, message in reason.examples:
            yield f"    {printable(item)}: {printable(message)}"
        if reason.examples and reason.count > len(reason.examples):
            yield f"    and {reason.count - len(reason.examples)} more"


def _usage(loads: Mapping[str, Load]) -> Iterator[str]:
    if narrow := bottleneck(loads):
        shares = [
            f"{name} {load.share:.0%} of {load.processes} process{'es' * (load.processes != 1)}"
            for name, load in loads.items()
        ]
        yield f"busy: {', '.join(shares)}; the bottleneck was {narrow}"


def _known(code: str, seen: Mapping[str, object]) -> str:
    return code if code in seen or len(seen) < _KINDS else "other"
