"""The page around a before/after report: it asks nothing of the network and runs no foreign script."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path

from fr_deploy.atomic import atomic_write
from fr_deploy.display import printable

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


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Write one HTML file, whole or not at all; no part of it is kept in memory.

    Args:
        path: ends in `.html` by custom; its folder is made if missing.
        title: of the window.
        body: markup, in order; what comes from outside went through `shown`.

    Raises:
        ImageError: reason `unwritable`.
        ResourceError: the disk is full.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_sha256(_STYLE)}'; "
        f"script-src '{_sha256(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    start = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{shown(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    end = f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    with atomic_write(path) as file:
        for part in chain([start], body, [end]):
            file.write(part.encode("utf-8"))


def head(title: str, counts: Sequence[tuple[str, int]], facts: Mapping[str, str]) -> str:
    """The head of a report: figures, facts, and how to read the pictures.

    Args:
        title: the heading.
        counts: what was counted, and how many.
        facts: label and value pairs: model, device, settings.
    """
    tiles = "".join(f"<li><b>{count}</b> {shown(label)}</li>" for label, count in counts)
    lines = "".join(f"<dt>{shown(k)}</dt><dd>{shown(v)}</dd>" for k, v in facts.items())
    return (
        f'<header>\n<h1>{shown(title)}</h1>\n<ul class="counts">{tiles}</ul>\n<dl>{lines}</dl>\n'
        "<p>Drag across a picture, or focus it and use the arrow keys: before is on the left, after "
        "on the right. Restored detail is plausible, not evidence of how a person looked.</p>\n"
        "</header>\n"
    )


def figure(pair: Pair, label: str) -> str:
    """One slider over two pictures.

    Args:
        pair: the pictures.
        label: of the slider, escaped already.
    """
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


def shown(text: str) -> str:
    """Any text as it may stand in a page: on one line, nothing in it is markup."""
    return escape(printable(text))


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
