"""What `fr-deploy serve-batch` prints: the summary of a run, its status, what `verify` found; and its report."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from fr_deploy import __version__
from fr_deploy.batch.ask import read_ask
from fr_deploy.batch.check import Report
from fr_deploy.batch.ledger import read_outcomes
from fr_deploy.batch.opening import Start, resume_command, shell_word
from fr_deploy.batch.progress import span
from fr_deploy.batch.report import write_batch_report
from fr_deploy.batch.run import Ending
from fr_deploy.batch.state import State
from fr_deploy.batch.status import status
from fr_deploy.batch.summary import Tally, counts_line, failure_lines, summary_lines
from fr_deploy.display import printable
from fr_deploy.errors import NoInputError


def finish(start: Start, ending: Ending, *, as_json: bool, report: Path | None) -> None:
    """Say what came of a run, and write its report.

    Args:
        start: what was given.
        ending: what came of it.
        as_json: one JSON document on stdout, text on stderr.
        report: where the report goes, or None.
    """

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    for line in summary_lines(
        ending.tally,
        total=ending.total,
        new=ending.new,
        seconds=ending.seconds,
        loads=ending.loads,
    ):
        say(line)
    if ending.restarts:
        say(f"{ending.restarts} processes were replaced")
    place = printable(str(start.destination))
    say(f"results: {place}; each outcome: {printable(str(start.folder / 'ledger.jsonl'))}")
    if ending.exit_code() == NoInputError.exit_code:
        say("no usable photo: nothing was restored")
    if not ending.complete:
        say(f"resume with: {resume_command(start)}")
    if report:
        with State(start.folder, write=False) as state:
            write_report_of(state, report)
        say(f"report: {printable(str(report))}")
    if as_json:
        print(json.dumps(_document(start, ending), indent=2))


def write_report_of(state: State, path: Path) -> None:
    """Write the report of a run.

    Args:
        state: of the run; open to be read is enough.
        path: the HTML file.

    Raises:
        ImageError: reason `unwritable`.
        ResourceError: the disk is full.
        ModelError: the state is damaged.
    """
    run, ask = state.begun, read_ask(state.folder)
    options = run.plan["options"] | {"quality": run.plan["quality"]}
    model = " + ".join([ask.engines or ask.model, *ask.loras])
    facts = {
        "Model": "none" if ask.fake else model,
        "Devices": ", ".join(ask.devices),
        "Sources": " ".join(run.sources),
        "Results": str(state.destination),
        "Settings": ", ".join(f"{key} {_plain(value)}" for key, value in options.items()),
        "Begun": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created)),
        "fr-deploy": run.fr_deploy,
    }
    write_batch_report(path, read_outcomes(state.ledger_path), state.pictures_path, facts)


def status_lines(state: State) -> Iterator[str]:
    """How far a run is."""
    found, tally = status(state), _tally(state)
    yield from failure_lines(tally)
    yield counts_line(tally, found.items)
    if tally.faces:
        yield f"{tally.faces} faces"
    if found.holder:
        rate = f", {found.per_second:.1f} a second" if found.per_second else ""
        eta = span(found.remaining / found.per_second) if found.per_second else "unknown"
        yield f"at work: {found.holder}{rate}, time left: {eta}"
    elif found.remaining:
        yield "not at work"
    else:
        yield "complete"


def status_json(state: State) -> str:
    """The same as JSON."""
    return json.dumps(status(state).as_json() | _tally(state).to_json(), indent=2)


def verify_lines(found: Report, queued: int | None, destination: Path) -> Iterator[str]:
    """What `verify` found.

    Args:
        found: by it.
        queued: items taken back by `--repair`; None: nothing was repaired.
        destination: of the run.
    """
    for problem in found.examples:
        detail = f" ({printable(problem.detail)})" if problem.detail else ""
        yield f"{problem.kind.replace('_', ' ')}: {printable(problem.name)}{detail}"
    yield (
        f"{found.items} photos, {found.outcomes} outcomes, {found.files} files of "
        f"{found.size / 1e6:.1f} MB read"
    )
    if found.ok:
        yield "all is as the ledger says"
        return
    place = shell_word(str(destination))
    yield "; ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found.counts.items())
    if queued is None:
        yield f"make them again with: fr-deploy serve-batch verify {place} --repair"
    else:
        yield f"{queued} will be made again by: fr-deploy serve-batch resume {place}"


def verify_json(found: Report, queued: int | None) -> str:
    """The same as JSON."""
    value = {
        "ok": found.ok,
        "items": found.items,
        "outcomes": found.outcomes,
        "files": found.files,
        "bytes": found.size,
        "problems": dict(found.counts),
        "examples": [vars(problem) for problem in found.examples],
        "queued": queued,
    }
    return json.dumps(value, indent=2)


def _tally(state: State) -> Tally:
    tally = Tally()
    for record in read_outcomes(state.ledger_path):
        tally.add(record)
    return tally


def _document(start: Start, ending: Ending) -> dict[str, Any]:
    rate = ending.new / ending.seconds if ending.seconds else 0.0
    return {
        "fr_deploy": __version__,
        "destination": str(start.destination),
        "state": str(start.folder),
        "total": ending.total,
        "done": ending.tally.done,
        "new": ending.new,
        "seconds": round(ending.seconds, 3),
        "images_per_s": round(rate, 3),
        **ending.tally.to_json(),
        "busy": {name: round(load.share, 4) for name, load in ending.loads.items()},
        "restarts": ending.restarts,
        "refused": [vars(refusal) for refusal in ending.refusals],
        "signal": ending.signal,
        "exit_code": ending.exit_code(),
    }


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value).lower()
