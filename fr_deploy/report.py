"""A before/after report: one HTML file that asks nothing of the network and runs no foreign script."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.pipeline import RestoredPhoto
from fr_deploy.report_page import Pair, figure, head, shown, write_page

PHOTO_SIDE = 768
FACE_SIDE = 320
MAX_FACES = 6
MAX_PICTURED = 100
"""Photos after these are rows of the table without pictures: each costs about 300 kB."""


@dataclass(frozen=True)
class ReportRow:
    """One photo in the report."""

    name: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    faces: int = 0
    photo: Pair | None = None
    crops: tuple[Pair, ...] = ()


def photo_pairs(before: NDArray[np.uint8], result: RestoredPhoto) -> tuple[Pair, tuple[Pair, ...]]:
    """Pictures of one result: the photo (at most 768 px a side) and its first 6 faces (320 px).

    Args:
        before: the photo as read, uint8 [H, W, 3].
        result: what `restore_photo` made of it.
    """
    faces = zip(result.crops[:MAX_FACES], result.restored[:MAX_FACES], strict=True)
    return _pair(before, result.rgb, PHOTO_SIDE), tuple(_pair(a, b, FACE_SIDE) for a, b in faces)


def write_report(path: Path, rows: Sequence[ReportRow], facts: Mapping[str, str]) -> None:
    """Write the report, whole or not at all.

    Args:
        path: ends in `.html` by custom; its folder is made if missing.
        rows: the photos, in order.
        facts: label and value pairs of the head: model, device, settings.

    Raises:
        ImageError: reason `unwritable`.
        ResourceError: the disk is full.
    """
    write_page(path, "Restored photos", _document(rows, facts))


def _pair(before: NDArray[np.uint8], after: NDArray[np.uint8], side: int) -> Pair:
    height, width, _ = after.shape
    scale = min(1.0, side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Pair(_jpeg(before, size), _jpeg(after, size), *size)


def _jpeg(rgb: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    how = cv2.INTER_AREA if size[0] < rgb.shape[1] else cv2.INTER_CUBIC
    small = np.asarray(cv2.resize(rgb, size, interpolation=how), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).save(out, "JPEG", quality=88, subsampling="4:4:4")
    return out.getvalue()


def _document(rows: Sequence[ReportRow], facts: Mapping[str, str]) -> Iterable[str]:
    counts = [("photos", len(rows)), ("faces restored", sum(row.faces for row in rows))]
    counts += [
        (label, count)
        for label, status in (("without a face", "no_face"), ("failed", "failed"))
        if (count := sum(row.status == status for row in rows))
    ]
    yield head("Restored photos", counts, facts)
    pictured = [row for row in rows if row.photo]
    yield from (_article(row, number) for number, row in enumerate(pictured, 1))
    yield _table(rows)


def _article(row: ReportRow, number: int) -> str:
    assert row.photo is not None
    name = shown(row.name)
    faces = "".join(figure(pair, f"Face {i} of {name}") for i, pair in enumerate(row.crops, 1))
    crops = f'<div class="faces">{faces}</div>\n' if faces else ""
    detail = f'<p class="detail">{shown(row.detail)}</p>\n' if row.detail else ""
    return (
        f'<article id="photo-{number}">\n<h2>{name}</h2>\n{detail}'
        f"{figure(row.photo, name)}{crops}</article>\n"
    )


def _table(rows: Sequence[ReportRow]) -> str:
    lines = "".join(
        f'<tr class="{escape(row.status)}"><td>{shown(row.name)}</td>'
        f"<td>{shown(row.status.replace('_', ' '))}</td><td>{row.faces}</td>"
        f"<td>{row.seconds:.2f}</td><td>{shown(row.detail)}</td></tr>\n"
        for row in sorted(rows, key=lambda row: row.status != "failed")
    )
    return (
        '<section>\n<h2>All photos</h2>\n<div class="scroll"><table>\n<thead><tr><th>Photo</th>'
        "<th>Result</th><th>Faces</th><th>Seconds</th><th>Remarks</th></tr></thead>\n"
        f"<tbody>\n{lines}</tbody>\n</table></div>\n</section>\n"
    )
