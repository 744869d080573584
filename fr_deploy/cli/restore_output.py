"""What `fr-deploy restore` shows: a bar on a terminal, plain lines in a pipe, JSON, the report."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fr_deploy import __version__
from fr_deploy.display import printable
from fr_deploy.errors import NoInputError
from fr_deploy.report import MAX_PICTURED, ReportRow, photo_pairs, write_report
from fr_deploy.restore_files import FileResult, Pictures, RunSettings, exit_code

_BAR_NAME = 30  # characters of a name beside the bar: the line must not wrap


class Display:
    """Follows a run; used as a context manager around the restoring."""

    def __init__(self, total: int, out: Path, *, as_json: bool, report: Path | None) -> None:
        """Choose where text goes.

        Args:
            total: number of photos.
            out: where the results go.
            as_json: stdout is kept for the JSON document, text goes to stderr.
            report: where the HTML report goes, or None.
        """
        self._console = Console(stderr=as_json, highlight=False, soft_wrap=True)
        self._total, self._out, self._as_json, self._report = total, out, as_json, report
        self._done = 0
        self._facts: dict[str, str] = {}
        self._settings: dict[str, Any] = {}
        self._rows: list[ReportRow] = []
        self._bar = Progress(
            TextColumn("restoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[name]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, name="")

    def start(self, model: str, device: str, settings: RunSettings) -> None:
        """Say what will run."""
        self._settings = asdict(settings)
        options = self._settings["options"] | {"quality": settings.quality}
        text = ", ".join(f"{key} {_plain(value)}" for key, value in options.items())
        self._facts = {
            "Model": model, "Device": device, "Settings": text, "fr-deploy": __version__,
        }  # fmt: skip
        self._line(f"model {model} on {device}; {text}")

    def note(self, text: str) -> None:
        """Say one thing about the run."""
        self._line(printable(text))

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, result: FileResult, pictures: Pictures | None) -> None:
        """Report one photo."""
        self._done += 1
        name = printable(result.name)
        self._bar.update(self._task, advance=1, name=name[-_BAR_NAME:])
        if not self._console.is_terminal:
            self._line(f"[{self._done}/{self._total}] {name}: {_outcome(result)}")
        if self._report:
            self._rows.append(_row(result, pictures, pictured=self._done <= MAX_PICTURED))

    def finish(self, results: Sequence[FileResult], ignored: int) -> None:
        """Sum up, list the failures, and write the report and the JSON document."""
        failed = [result for result in results if result.status == "failed"]
        self._list_failures(failed)
        self._line(_summary(results, ignored))
        if any(result.outputs for result in results):
            self._line(f"results: {printable(str(self._out))}")
        if exit_code(results) == NoInputError.exit_code:
            self._line("no usable photo: nothing was restored")
        if self._report:
            shown = {row.name for row in self._rows}
            rest = [_row(r, None, pictured=False) for r in failed if r.name not in shown]
            write_report(self._report, self._rows + rest, self._facts)
            self._line(f"report: {printable(str(self._report))}")
        if self._as_json:
            print(json.dumps(self._document(results, ignored), indent=2, default=str))

    def _document(self, results: Sequence[FileResult], ignored: int) -> dict[str, Any]:
        return {
            "fr_deploy": __version__,
            "model": self._facts.get("Model"),
            "device": self._facts.get("Device"),
            "settings": self._settings,
            "counts": Counter(result.status for result in results),
            "ignored": ignored,
            "files": [result.as_json() for result in results],
        }

    def _list_failures(self, failed: Sequence[FileResult]) -> None:
        if not failed:
            return
        if not self._console.is_terminal:
            for result in failed:
                self._line(f"failed: {printable(result.name)}: {_outcome(result)}")
            return
        table = Table(title="failed", title_justify="left")
        for column in ("photo", "reason", "what happened"):
            table.add_column(column, overflow="fold")
        for result in failed:
            table.add_row(
                Text(printable(result.name)), result.reason, Text(printable(result.message))
            )
        self._console.print(table, soft_wrap=False)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False)


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _outcome(result: FileResult) -> str:
    if result.status == "failed":
        return f"{result.reason}: {printable(result.message)}"
    remarks = f" ({', '.join(result.warnings)})" if result.warnings else ""
    if result.status == "skipped":
        return f"skipped, {result.message}{remarks}"
    targets = ", ".join(printable(str(path)) for path in result.outputs) or "nothing written"
    count = len(result.faces)
    found = "no face found" if result.status == "no_face" else f"{count} face{'s'[: count != 1]}"
    if result.status == "restored" and not count:
        found = "aligned face"
    return f"{found}, {result.seconds:.1f} s -> {targets}{remarks}"


def _summary(results: Sequence[FileResult], ignored: int) -> str:
    counts = Counter(result.status for result in results)
    faces = sum(len(result.faces) for result in results)
    seconds = sum(result.seconds for result in results)
    parts = [f"{counts['restored']} restored", f"{faces} faces"] if faces else []
    parts = parts or [f"{counts['restored']} restored"]
    parts += [
        f"{counts[status]} {label}"
        for status, label in (
            ("no_face", "without a face"),
            ("skipped", "skipped"),
            ("failed", "failed"),
        )
        if counts[status]
    ]
    other = f"; {ignored} other files ignored" if ignored else ""
    return f"{', '.join(parts)} in {seconds:.1f} s{other}"


def _row(result: FileResult, pictures: Pictures | None, *, pictured: bool) -> ReportRow:
    show = pictured and pictures is not None and result.status == "restored"
    photo, crops = (
        photo_pairs(pictures.before, pictures.restored) if show and pictures else (None, ())
    )
    detail = f"{result.reason}: {result.message}" if result.reason else ", ".join(result.warnings)
    count = len(pictures.restored.restored) if pictures else 0
    return ReportRow(result.name, result.status, detail, result.seconds, count, photo, crops)
