"""`fr-deploy serve-batch`: photos by the million, each with one outcome on disk whatever is killed."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fr_deploy.cli.options import refuse_mixed
from fr_deploy.cli.serve_batch_options import (
    resume_options,
    run_options,
    state_options,
    write_run_options,
)
from fr_deploy.display import printable

if TYPE_CHECKING:
    from fr_deploy.batch.ask import Ask
    from fr_deploy.batch.opening import Start
    from fr_deploy.batch.ray_choice import RayChoice
    from fr_deploy.batch.state import State

_SHORT = "Restore photos by the million; resumable, each with one outcome."
_PATH = click.Path(path_type=Path)
_PROCESSES = ("preparers", "finishers")


class _Group(click.Group):
    """A group whose first argument means `run` if it is no subcommand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before what is not for the group itself."""
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options of `run` by topic, then the commands."""
        write_run_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """What follows the name in the first line of the help."""
        del ctx
        return ["[OPTIONS] SRC... DST", "| COMMAND ..."]


@click.group(cls=_Group, short_help=_SHORT, no_args_is_help=False)
def serve_batch() -> None:
    """Restore the faces of all photos of SRC into DST; the same command again resumes.

    SRC is a file, a folder (searched to the bottom), a pattern, a tar or zip file, a list (.csv, .jsonl, or - for
    standard input), an s3:// or gs:// prefix or, with --allow-http, an address. What became of each photo is kept
    in DST/.fr-deploy: a run that was killed goes on where it was, and nothing is lost, done twice or half written.

    \b
      fr-deploy serve-batch archive/ restored/ --ext jpg --report restored.html
      fr-deploy serve-batch archive/ restored/ --devices cuda:0,cuda:1
      fr-deploy serve-batch incoming/ restored/ --watch
      fr-deploy serve-batch /nfs/archive /nfs/restored --ray head:6379
      fr-deploy serve-batch resume restored/

    The first Ctrl-C (or SIGTERM) finishes what is in flight, the second stops at once; the exit code is then 130
    (143), if photos are left. Others are as of every command: docs/serve-batch.md.
    """


@serve_batch.command(short_help="Begin a run, or go on with it; the command if none is named.")
@click.argument("places", nargs=-1, metavar="SRC... DST", type=str)
@run_options
def run(**given: Any) -> None:
    """Begin a run of SRC... into DST, or go on with it."""
    from fr_deploy.batch.ask import plan_of

    *sources, destination = given["places"] or [""]
    if not sources:
        raise click.UsageError(
            "name SRC... and DST: what to restore, and the folder of the results"
        )
    refuse_mixed(given)
    start = _start(Path(destination), _ask(sources, given), plan_of(given), given)
    if given["dry_run"]:
        from fr_deploy.batch.opening import check_only
        from fr_deploy.batch.run import check_start

        check_start(start)
        count = check_only(start, lambda text: click.echo(text, err=True))
        place = printable(str(destination))
        click.echo(f"{count} photos would be restored into {place}; nothing was written")
        return
    _work(start, given)


@serve_batch.command(short_help="Go on with the run of DST.")
@click.argument("destination", metavar="DST", type=_PATH)
@resume_options
def resume(destination: Path, **given: Any) -> None:
    """Go on with the run of DST, as it was begun; devices and numbers of processes may be others."""
    from fr_deploy.batch.ask import read_ask

    changed: dict[str, Any] = {name: given[name] for name in _PROCESSES if given[name]}
    if given["devices"] or given["device"] != "auto":
        changed["devices"] = _devices(given)
    if given["report"]:
        changed["pictures"] = True
    with _state(destination, given) as state:
        plan = state.begun.plan_of()
        ask = read_ask(state.folder).changed(changed)
    _work(_start(destination, ask, plan, given), given)


@serve_batch.command(short_help="Say how far the run of DST is.")
@click.argument("destination", metavar="DST", type=_PATH)
@state_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(destination: Path, as_json: bool, **given: Any) -> None:
    """Say how far the run of DST is, whether it is at work, and what failed."""
    from fr_deploy.cli.serve_batch_output import status_json, status_lines

    with _state(destination, given) as state:
        if as_json:
            click.echo(status_json(state))
        else:
            click.echo("\n".join(status_lines(state)))


@serve_batch.command(short_help="Compare all results in DST with the ledger.")
@click.argument("destination", metavar="DST", type=_PATH)
@state_options
@click.option("--repair", is_flag=True, help="Queue what is broken or missing for the next resume.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(destination: Path, repair: bool, as_json: bool, **given: Any) -> None:
    """Read all results in DST and compare them with the ledger: nothing missing, changed, torn or twice.

    The exit code is 3 if something is wrong.
    """
    from fr_deploy.batch.check import repair as mend
    from fr_deploy.batch.check import verify as check
    from fr_deploy.cli.serve_batch_output import verify_json, verify_lines

    with _state(destination, given, write=repair) as state:
        found = check(state)
        queued = mend(state, found) if repair and not found.ok else None
    if as_json:
        click.echo(verify_json(found, queued))
    else:
        click.echo("\n".join(verify_lines(found, queued, destination)))
    raise SystemExit(0 if found.ok else 3)


@serve_batch.command(short_help="Put the shards of DST together into one run.")
@click.argument("destination", metavar="DST", type=_PATH)
def merge(destination: Path) -> None:
    """Put the states of all shards of DST together, as if one run had done it."""
    from fr_deploy.batch.ask import read_ask, write_ask
    from fr_deploy.batch.folder import state_folder
    from fr_deploy.batch.merge import merge as put_together
    from fr_deploy.batch.pictures import FILE, merge_pictures

    folder = state_folder(destination)
    merged = put_together(folder)
    shards = [state_folder(destination, (i, merged.shards)) for i in range(merged.shards)]
    write_ask(folder, read_ask(shards[0]))
    merge_pictures([shard / FILE for shard in shards], folder / FILE)
    click.echo(f"{merged.shards} shards with {merged.items} photos merged")


@serve_batch.command(short_help="Write the before/after page of the run of DST.")
@click.argument("destination", metavar="DST", type=_PATH)
@state_options
@click.option("-o", "--output", "out", type=_PATH, required=True, help="The HTML file.")
def report(destination: Path, out: Path, **given: Any) -> None:
    """Write the before/after page of the run of DST: pictures, histograms, failures by reason.

    There are pictures only of what was restored while --report was given to the run.
    """
    from fr_deploy.cli.serve_batch_output import write_report_of

    with _state(destination, given) as state:
        write_report_of(state, out)
    click.echo(f"report: {printable(str(out))}")


def _ask(sources: list[str], given: dict[str, Any]) -> "Ask":
    from fr_deploy.batch.ask import Ask, anchored

    same = ("model", "allow_unverified", "dtype", "backend", "attention", "batch", "sink")
    more = (
        "preparers",
        "finishers",
        "sidecar",
        "watch",
        "allow_http",
        "allow_private",
        "overwrite",
    )
    return anchored(
        Ask(
            sources=tuple(sources),
            devices=_devices(given),
            loras=tuple(given["loras"]),
            engines=str(given["engines"]) if given["engines"] else None,
            trust=str(given["trust"]) if given["trust"] else None,
            pictures=given["report"] is not None,
            **{name: given[name] for name in (*same, *more)},
        )
    )


def _devices(given: dict[str, Any]) -> tuple[str, ...]:
    if given["devices"] and given["device"] != "auto":
        raise click.UsageError("--device and --devices say the same; leave one of them out")
    return given["devices"] or (given["device"],)


def _start(destination: Path, ask: "Ask", plan: Any, given: dict[str, Any]) -> "Start":
    from fr_deploy.batch.opening import Start

    folder = _folder(destination, given)
    return Start(ask, plan, destination, folder, given["shard"], given["force_mixed"], _ray(given))


def _ray(given: dict[str, Any]) -> "RayChoice | None":
    from fr_deploy.batch.ray_choice import RayChoice, parse_address

    if given["ray"] is None:
        if given["insecure_ray"]:
            raise click.UsageError("--insecure-ray is for --ray ADDRESS; add that")
        return None
    return RayChoice(parse_address(given["ray"]), given["insecure_ray"], given["ray_watchdog"])


def _folder(destination: Path, given: dict[str, Any]) -> Path:
    from fr_deploy.batch.opening import folder_of

    return folder_of(destination, given["state"], given["shard"])


def _state(destination: Path, given: dict[str, Any], *, write: bool = False) -> "State":
    from fr_deploy.batch.state import State

    return State(_folder(destination, given), write=write)


def _work(start: "Start", given: dict[str, Any]) -> None:
    """Run, say what came of it, and leave with the exit code."""
    from fr_deploy.batch.opening import resume_command
    from fr_deploy.batch.run import run_batch
    from fr_deploy.cli.serve_batch_output import finish
    from fr_deploy.errors import FrDeployError

    try:
        ending = run_batch(start, progress=given["progress"], stream=sys.stderr)
    except FrDeployError:
        if start.folder.joinpath("run.json").exists():
            click.echo(f"resume with: {resume_command(start)}", err=True)
        raise
    finish(start, ending, as_json=given["as_json"], report=given["report"])
    raise SystemExit(ending.exit_code())
