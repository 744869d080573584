"""Draws pipeline.csv: each technique at one batch, with its spread, and all of them over the batches.

    python -m fr_bench.plot benchmarks/results/pipeline.csv -o FILE.svg [--batch N] [--device NAME]

One machine, model and number format, by default those of the file's last row; of every batch its latest run. The same
file gives the same picture, byte for byte.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fr_bench.series import Point, Series, read_series
from fr_deploy.errors import FrDeployError, ResourceError, UsageError

FORMATS = (".svg", ".png", ".pdf")
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "fr-deploy", "font.size": 9.0}
"""Text stays text; and what matplotlib names by chance is named by this salt."""


def draw(series: Series, batch: int, path: Path) -> None:
    """Write the picture.

    Args:
        series: of one machine.
        batch: whose techniques are compared one by one.
        path: .svg, .png or .pdf.

    Raises:
        UsageError: another suffix, or a batch that was not measured.
        ResourceError: matplotlib is missing.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: {path.suffix or 'no suffix'}; allowed: {', '.join(FORMATS)}")
    bars = series.at(batch)
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(series.title, fontsize=9)
        colors = {name: f"C{i % 10}" for i, name in enumerate(series.techniques())}
        _draw_bars(left, bars, colors)
        _draw_batches(right, series, colors)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        stamps = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, metadata=stamps.get(path.suffix))


def _draw_bars(axes: Any, bars: list[Point], colors: dict[str, str]) -> None:
    names, medians = [b.technique for b in bars], [b.median for b in bars]
    spread = [[b.median - b.low for b in bars], [b.high - b.median for b in bars]]
    drawn = axes.barh(names, medians, xerr=spread, capsize=3, color=[colors[n] for n in names])
    axes.bar_label(drawn, [f"{m:.3g}" for m in medians], padding=3)
    axes.invert_yaxis()  # the first technique on top, as in the file
    axes.margins(x=0.12)
    axes.set_xlabel(f"images/s at batch {bars[0].batch}: median, p20 to p80")


def _draw_batches(axes: Any, series: Series, colors: dict[str, str]) -> None:
    for name, points in series.techniques().items():
        batches, medians = [p.batch for p in points], [p.median for p in points]
        spread = [[p.median - p.low for p in points], [p.high - p.median for p in points]]
        axes.errorbar(
            batches, medians, spread, None, "o-", capsize=3, color=colors[name], label=name
        )
    measured = sorted({point.batch for point in series.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(measured, [str(batch) for batch in measured])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("faces a call")
    axes.set_ylabel("images/s")


def _matplotlib() -> Any:
    try:
        import_module("matplotlib.figure")
        return import_module("matplotlib")
    except ImportError as error:
        raise ResourceError(
            f'no plot without matplotlib ({error}): pip install "fr-deploy[plot]"'
        ) from error


def main(arguments: list[str] | None = None) -> None:
    """Read, draw, and say what was drawn."""
    parser = argparse.ArgumentParser(prog="python -m fr_bench.plot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("csv", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help=", ".join(FORMATS))
    parser.add_argument("--batch", type=int, help="of the techniques one by one [the smallest]")
    for name in ("device", "model", "dtype"):
        parser.add_argument(f"--{name}", help="[the last row's]")
    given = parser.parse_args(arguments)
    try:
        series = read_series(given.csv, device=given.device, model=given.model, dtype=given.dtype)
        batch = series.points[0].batch if given.batch is None else given.batch
        draw(series, batch, given.output)
    except FrDeployError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{given.output}: {series.title}")


if __name__ == "__main__":
    main()
