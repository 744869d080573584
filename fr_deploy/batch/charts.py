"""Histograms as inline SVG, for the report: no script, no style of their own."""

from collections.abc import Sequence

from fr_deploy.report_page import shown

_WIDTH, _HEIGHT = 560, 200
_LEFT, _TOP, _FOOT = 8, 22, 26
_GAP = 0.15


def histogram_svg(title: str, bars: Sequence[tuple[str, int]], unit: str) -> str:
    """A bar for each count, with the counts in words for whoever sees no pictures.

    Args:
        title: what was counted.
        bars: label and count, in order; not empty.
        unit: of the labels.
    """
    most = max(count for _, count in bars) or 1
    step = (_WIDTH - 2 * _LEFT) / len(bars)
    room = _HEIGHT - _TOP - _FOOT
    marks: list[str] = []
    for index, (label, count) in enumerate(bars):
        height = room * count / most
        x, y = _LEFT + step * (index + _GAP / 2), _TOP + room - height
        middle = _LEFT + step * (index + 0.5)
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * (1 - _GAP):.1f}" height="{height:.1f}"/>'
            f'<text x="{middle:.1f}" y="{y - 5:.1f}">{count or ""}</text>'
            f'<text x="{middle:.1f}" y="{_HEIGHT - 8}">{shown(label)}</text>'
        )
    words = "; ".join(f"{label} {unit}: {count}" for label, count in bars if count)
    return (
        f'<figure class="chart"><figcaption>{shown(title)} ({shown(unit)})</figcaption>\n'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{shown(words)}">'
        f"{''.join(marks)}</svg></figure>\n"
    )
