"""What a restorer owes over its input, level by level, and the table that shows whether it pays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from fr_training.metrics import Interval, bootstrap_mean, bootstrap_ratio

METRICS = ("psnr", "ssim", "lpips_hed", "deg_dlib")
BASELINES = ("bilateral", "nlm")
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Bar:
    """Least gain over the degraded input: dB to gain, lpips_hed to keep (a factor), degrees to add."""

    psnr: float
    lpips_hed: float
    deg_dlib: float


# fmt: off
MUSTS = {
    "mild":    Bar(-1.5, 0.90, 1.5),
    "vqfr-v1": Bar(0.0,  0.84, 0.5),
    "vqfr-v2": Bar(0.2,  0.86, 0.0),
}
GOALS = {
    "mild":    Bar(0.0,  0.75, -1.0),
    "vqfr-v1": Bar(0.5,  0.65, -3.0),
    "vqfr-v2": Bar(1.0,  0.60, -5.0),
}
# fmt: on


@dataclass
class Row:
    """Scores of one method on one set at one level.

    Attributes:
        scores: per metric one number a face, all [N].
        gains: against the input of the same faces: differences, for lpips_hed the ratio of means.
        verdict: "goal", "must", "missed: ..." with what was missed, or "" where nothing is asked.
    """

    set_name: str
    level: str
    method: str
    scores: dict[str, list[float]]
    gains: dict[str, Interval] = field(default_factory=dict[str, Interval])
    verdict: str = ""

    @property
    def means(self) -> dict[str, float]:
        """Mean over faces of every metric."""
        return {name: float(np.mean(values)) for name, values in self.scores.items()}

    def to_json(self) -> dict[str, Any]:
        """The row as plain dicts and lists, intervals as {value, low, high}."""
        gains = {name: interval._asdict() for name, interval in self.gains.items()}
        return asdict(self) | {"means": self.means, "gains": gains}


def judge(rows: Sequence[Row]) -> None:
    """Fill in `gains` of every row, and `verdict` of the rows of `method` "model"."""
    by_key = {(row.set_name, row.level, row.method): row for row in rows}
    for row in rows:
        before = by_key.get((row.set_name, row.level, "input"))
        if before is None or before is row:
            continue
        row.gains = gains_over(before.scores, row.scores)
        if row.method == "model" and row.level in MUSTS:
            others = [by_key.get((row.set_name, row.level, name)) for name in BASELINES]
            row.verdict = _verdict(row, [other for other in others if other])


def gains_over(
    before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]
) -> dict[str, Interval]:
    """Paired gains of `after` over `before`: ratio of means for lpips_hed, else mean difference."""
    gains: dict[str, Interval] = {}
    for name, values in after.items():
        if name == "lpips_hed":
            gains[name] = bootstrap_ratio(values, before[name], BOOTSTRAP_SEED)
        else:
            gains[name] = bootstrap_mean(np.subtract(values, before[name]), BOOTSTRAP_SEED)
    return gains


def shortfalls(gains: Mapping[str, Interval], bar: Bar) -> list[str]:
    """Which parts of `bar` the mean gains miss, worded; empty if none."""
    missed: list[str] = []
    if gains["psnr"].value < bar.psnr:
        missed.append(f"PSNR {gains['psnr'].value:+.2f} < {bar.psnr:+.2f} dB")
    if gains["lpips_hed"].value > bar.lpips_hed:
        missed.append(f"lpips_hed {gains['lpips_hed'].value:.3f}x > {bar.lpips_hed:.2f}x")
    if gains["deg_dlib"].value > bar.deg_dlib:
        missed.append(f"deg_dlib {gains['deg_dlib'].value:+.2f} > {bar.deg_dlib:+.2f}")
    return missed


def _verdict(row: Row, baselines: Sequence[Row]) -> str:
    missed = shortfalls(row.gains, MUSTS[row.level])
    missed += [
        f"lpips_hed {row.means['lpips_hed']:.3f} >= {other.method} {other.means['lpips_hed']:.3f}"
        for other in baselines
        if row.means["lpips_hed"] >= other.means["lpips_hed"]
    ]
    if missed:
        return "missed: " + ", ".join(missed)
    return "must" if shortfalls(row.gains, GOALS[row.level]) else "goal"


def eval_table(rows: Sequence[Row]) -> Table:
    """The rows as a Rich table: means, below them gains over the input with 95 % intervals."""
    table = Table(caption="below each mean: gain over the input, 95 % bootstrap interval, paired")
    for name in ("set", "level", "method", "PSNR dB", "SSIM", "lpips_hed", "deg_dlib", "verdict"):
        table.add_column(name, justify="left" if name in ("set", "method", "verdict") else "right")
    for row, before in zip(rows, [None, *rows], strict=False):
        same = before and (before.set_name, before.level) == (row.set_name, row.level)
        if before and not same:
            table.add_section()
        cells = [_cell(row, name) for name in METRICS]
        label = (f"{row.set_name} ({len(row.scores['psnr'])})", row.level)
        table.add_row(*(("", "") if same else label), row.method, *cells, row.verdict)
    return table


def _cell(row: Row, name: str) -> str:
    digits, sign = {"psnr": (2, "+"), "ssim": (3, "+"), "lpips_hed": (3, ""), "deg_dlib": (2, "+")}[
        name
    ]
    mean = f"{row.means[name]:.{digits}f}"
    if name not in row.gains:
        return mean
    value, low, high = (f"{number:{sign}.{digits}f}" for number in row.gains[name])
    unit = "x" if name == "lpips_hed" else ""
    return f"{mean}\n{value}{unit} [{low}, {high}]"


def eval_markdown(rows: Sequence[Row]) -> str:
    """The rows of the model as a Markdown table: input -> restored, paired gain and its 95 % interval."""
    lines = [
        "| faces | level | PSNR dB | SSIM | lpips_hed | deg_dlib | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    inputs = {(row.set_name, row.level): row for row in rows if row.method == "input"}
    for row in rows:
        before = inputs.get((row.set_name, row.level))
        if row.method == "model" and before is not None:
            cells = [_change(before, row, name) for name in METRICS]
            verdict = row.verdict.split(":")[0]
            lines.append(f"| {row.set_name} | {row.level} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines) + "\n"


def _change(before: Row, after: Row, name: str) -> str:
    mean, gain, *_ = _cell(after, name).split("\n")
    return f"{_cell(before, name)} → {mean}: {gain}"
