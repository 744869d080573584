"""A before/after report: one HTML file that asks nothing of the network and runs no foreign script."""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.atomic import atomic_write
from fr_deploy.display import printable
from fr_deploy.pipeline import RestoredPhoto

PHOTO_SIDE = 768
FACE_SIDE = 320
MAX_FACES = 6
MAX_PICTURED = 100
"""Photos after these are rows of the table without pictures: each costs about 300 kB."""

_SCRIPT = """
for (const range of document.querySelectorAll(".pair input")) {
  const show = () => range.parentElement.style.setProperty("--x", range.value + "%");
  range.addEventListener("input", show);
  show();
}
"""
_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Pair:
    """Two JPEG pictures of one size."""

    before: bytes
    after: bytes
    width: int
    height: int


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
    with atomic_write(path) as file:
        for part in _document(rows, facts):
            file.write(part.encode("utf-8"))


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
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha256(_STYLE)}'; "
        f"script-src '{_sha256(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>Restored photos</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    yield _head(rows, facts)
    pictured = [row for row in rows if row.photo]
    yield from (_article(row, number) for number, row in enumerate(pictured, 1))
    yield _table(rows)
    yield f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _head(rows: Sequence[ReportRow], facts: Mapping[str, str]) -> str:
    counts = [("photos", len(rows)), ("faces restored", sum(row.faces for row in rows))]
    counts += [
        (label, count)
        for label, status in (("without a face", "no_face"), ("failed", "failed"))
        if (count := sum(row.status == status for row in rows))
    ]
    tiles = "".join(f"<li><b>{count}</b> {label}</li>" for label, count in counts)
    lines = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    return (
        f'<header>\n<h1>Restored photos</h1>\n<ul class="counts">{tiles}</ul>\n<dl>{lines}</dl>\n'
        "<p>Drag across a picture, or focus it and use the arrow keys: before is on the left, after "
        "on the right. Restored detail is plausible, not evidence of how a person looked.</p>\n"
        "</header>\n"
    )


def _article(row: ReportRow, number: int) -> str:
    assert row.photo is not None
    name = _text(row.name)
    faces = "".join(_figure(pair, f"Face {i} of {name}") for i, pair in enumerate(row.crops, 1))
    crops = f'<div class="faces">{faces}</div>\n' if faces else ""
    detail = f'<p class="detail">{_text(row.detail)}</p>\n' if row.detail else ""
    return (
        f'<article id="photo-{number}">\n<h2>{name}</h2>\n{detail}'
        f"{_figure(row.photo, name)}{crops}</article>\n"
    )


def _figure(pair: Pair, label: str) -> str:
    """One slider; `label` is escaped already."""
    size = f'width="{pair.width}" height="{pair.height}"'
    images = "".join(
        f'<img {size} alt="{word}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
        for word, data in (("before", pair.before), ("after", pair.after))
    )
    return (
        f'<div class="pair">{images}<span class="tag">before</span><span class="tag">after</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}: before to after">'
        "</div>\n"
    )


def _table(rows: Sequence[ReportRow]) -> str:
    lines = "".join(
        f'<tr class="{escape(row.status)}"><td>{_text(row.name)}</td>'
        f"<td>{_text(row.status.replace('_', ' '))}</td><td>{row.faces}</td>"
        f"<td>{row.seconds:.2f}</td><td>{_text(row.detail)}</td></tr>\n"
        for row in sorted(rows, key=lambda row: row.status != "failed")
    )
    return (
        '<section>\n<h2>All photos</h2>\n<div class="scroll"><table>\n<thead><tr><th>Photo</th>'
        "<th>Result</th><th>Faces</th><th>Seconds</th><th>Remarks</th></tr></thead>\n"
        f"<tbody>\n{lines}</tbody>\n</table></div>\n</section>\n"
    )


def _text(text: str) -> str:
    return escape(printable(text))
