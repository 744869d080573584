"""The report of a batch run: pictures of its first items, histograms, failures by reason, and a table."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fr_deploy.batch.charts import histogram_svg
from fr_deploy.batch.item import Record
from fr_deploy.batch.pictures import PictureBook
from fr_deploy.batch.summary import Tally
from fr_deploy.report_page import figure, head, shown, write_page

MAX_ROWS = 1000
"""Rows of the table, of items that failed and as many of others; the items after these are counted."""
_TITLE = "Restored photos"


def write_batch_report(
    path: Path, records: Iterable[Record], pictures: Path, facts: Mapping[str, str]
) -> None:
    """Write the report of a run, whole or not at all; memory does not grow with its items.

    Args:
        path: ends in `.html` by custom; its folder is made if missing.
        records: of the run, in any order; read once.
        pictures: its `pictures.jsonl`; one that is missing holds none.
        facts: label and value pairs of the head: model, device, settings.

    Raises:
        ImageError: reason `unwritable`.
        ResourceError: the disk is full.
    """
    book = PictureBook(pictures)
    tally, rows, pictured = Tally(), _Rows(), list[Record]()
    for record in records:
        tally.add(record)
        rows.add(record)
        if record.id in book:
            pictured.append(record)
    write_page(path, _TITLE, _body(tally, rows, pictured, book, facts))


class _Rows:
    """The records that get a row."""

    def __init__(self) -> None:
        self.failed: list[Record] = []
        self.others: list[Record] = []

    def add(self, record: Record) -> None:
        kept = self.failed if record.status == "failed" else self.others
        if len(kept) < MAX_ROWS:
            kept.append(record)


def _body(
    tally: Tally,
    rows: _Rows,
    pictured: list[Record],
    book: PictureBook,
    facts: Mapping[str, str],
) -> Iterator[str]:
    labels = {"failed": "failed", "no_face": "without a face", "copied": "copied as they were"}
    counts = [("photos", tally.done), ("faces restored", tally.faces)]
    counts += [(text, tally.counts[key]) for key, text in labels.items() if tally.counts[key]]
    yield head(_TITLE, counts, facts)
    yield _charts(tally)
    yield _failures(tally)
    yield '<section class="gallery">\n'
    for number, record in enumerate(sorted(pictured, key=lambda record: record.index), 1):
        yield _article(record, number, book)
    yield "</section>\n"
    yield _table([*rows.failed, *rows.others], tally.done)


def _charts(tally: Tally) -> str:
    charts = [
        ("Identity: how far each face moved", list(tally.angles.bars()), "degrees"),
        ("Time of each photo, all stages", list(tally.seconds.bars()), "seconds"),
    ]
    drawn = "".join(histogram_svg(title, bars, unit) for title, bars, unit in charts if bars)
    return f'<section class="charts">\n{drawn}</section>\n' if drawn else ""


def _failures(tally: Tally) -> str:
    if not tally.reasons:
        return ""
    lines: list[str] = []
    for name, reason in sorted(tally.reasons.items(), key=lambda pair: -pair[1].count):
        told = "<br>".join(f"{shown(item)}: {shown(text)}" for item, text in reason.examples)
        more = reason.count - len(reason.examples)
        rest = f"<br>and {more} more" if more else ""
        lines.append(
            f'<tr class="failed"><td>{reason.count}</td><td>{shown(name)}</td><td>{told}{rest}</td></tr>\n'
        )
    return (
        '<section>\n<h2>Failures by reason</h2>\n<div class="scroll"><table>\n<thead><tr>'
        "<th>Photos</th><th>Reason</th><th>Examples</th></tr></thead>\n"
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n</section>\n"
    )


def _article(record: Record, number: int, book: PictureBook) -> str:
    photo, *crops = book.pairs(record.id)
    name = shown(record.name)
    faces = "".join(figure(pair, f"Face {i} of {name}") for i, pair in enumerate(crops, 1))
    more = f'<div class="faces">{faces}</div>\n' if faces else ""
    detail = f'<p class="detail">{shown(_remarks(record))}</p>\n'
    return (
        f'<article id="photo-{number}">\n<h3>{name}</h3>\n{detail}{figure(photo, name)}'
        f"{more}</article>\n"
    )


def _remarks(record: Record) -> str:
    if record.status == "failed":
        return f"{record.reason}: {record.message}"
    count = len(record.faces)
    parts = [f"{count} face{'s'[: count != 1]}" if count else record.status.replace("_", " ")]
    angles = [f"{face['angle']:.0f}" for face in record.faces if face.get("angle") is not None]
    parts += [f"moved by {', '.join(angles)} degrees"] if angles else []
    blends = [f"{face['blend']:g}" for face in record.faces if face.get("blend", 1.0) < 1]
    parts += [f"blended back to {', '.join(blends)}"] if blends else []
    return "; ".join([*parts, *record.warnings])


def _table(kept: list[Record], total: int) -> str:
    lines = "".join(
        f'<tr class="{shown(record.status)}"><td>{shown(record.name)}</td>'
        f"<td>{shown(record.status.replace('_', ' '))}</td><td>{len(record.faces)}</td>"
        f"<td>{sum(record.ms.values()) / 1000:.2f}</td><td>{shown(_remarks(record))}</td></tr>\n"
        for record in kept
    )
    left = total - len(kept)
    more = f'<p class="detail">and {left} more, in the ledger</p>\n' if left > 0 else ""
    return (
        '<section>\n<h2>Photos</h2>\n<div class="scroll"><table>\n<thead><tr><th>Photo</th>'
        "<th>Result</th><th>Faces</th><th>Seconds</th><th>Remarks</th></tr></thead>\n"
        f"<tbody>\n{lines}</tbody>\n</table></div>\n{more}</section>\n"
    )
