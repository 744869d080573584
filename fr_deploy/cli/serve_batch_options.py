"""The options of `fr-deploy serve-batch`, beside those that it shares with `restore`."""

import re
from pathlib import Path

import click

from fr_deploy.cli.options import (
    device_option,
    face_options,
    model_options,
    output_options,
    runtime_options,
    together,
)

_PATH = click.Path(path_type=Path)
PROGRESS = ("auto", "bar", "lines", "json", "none")
"""As in `fr_deploy.batch.progress`, which takes too long to import for `--help`."""


def _shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`i/N`, with i from 0 to N - 1."""
    del ctx, param
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
    if not match or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{value!r}; allowed are 0/N to N-1/N, such as 0/8 and 7/8")
    return int(match[1]), int(match[2])


def _devices(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names with commas between."""
    del ctx, param
    names = tuple(name.strip() for name in value.split(",")) if value is not None else ()
    if not all(names):
        raise click.BadParameter(f"{value!r} names an empty device")
    return names


state_options = together(
    click.option(
        "--state",
        type=_PATH,
        metavar="DIR",
        help="Folder of the list and the ledger.  [default: DST/.fr-deploy]",
    ),
    click.option(
        "--shard",
        callback=_shard,
        metavar="i/N",
        help="Work on part i of N of the list alone, i from 0; `merge` puts the parts together.",
    ),
)
"""Which run of a destination."""

pace_options = together(
    click.option(
        "--devices",
        callback=_devices,
        metavar="LIST",
        help="Several devices, a process each: cuda:0,cuda:1. In place of --device.",
    ),
    click.option(
        "--preparers",
        type=click.IntRange(1, 256),
        help="Processes that read photos and find faces.  [default: one for two cores]",
    ),
    click.option(
        "--finishers",
        type=click.IntRange(1, 256),
        help="Processes that paste back, encode and write.  [default: the same, 2 at least]",
    ),
    click.option(
        "--ray",
        is_flag=False,
        flag_value="local",
        metavar="[ADDRESS]",
        help="Let Ray carry it out: HOST:PORT of a cluster's head, auto, or local.  [bare: local]",
    ),
    click.option(
        "--insecure-ray", is_flag=True, help="Connect to a cluster that asks for no token."
    ),
    click.option(
        "--ray-watchdog",
        type=click.FloatRange(1),
        default=900.0,
        show_default=True,
        metavar="SECONDS",
        help="Replace actors that bring no record so long; the second time in a row, end.",
    ),
)
"""How a run is carried out: may differ from start to start."""

show_options = together(
    click.option(
        "--progress",
        type=click.Choice(PROGRESS),
        default="auto",
        show_default=True,
        help="auto: a bar on a terminal, else a line every 10 s; json: an object a second, on stderr.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout."),
    click.option("--report", type=_PATH, help="Write a before/after HTML page at the end."),
    click.option(
        "--force-mixed",
        is_flag=True,
        help="Go on although the model or an option differs from the start; noted in run.json.",
    ),
)
"""What a run shows, and how it goes on."""

_batch_options = together(
    click.option(
        "--sink",
        type=click.Choice(["tree", "tar"]),
        default="tree",
        show_default=True,
        help="A file for each result, or tar shards of many.",
    ),
    click.option(
        "--max-identity-angle",
        type=click.FloatRange(1, 180),
        metavar="DEG",
        help="Blend faces back whose identity moved further (dlib's embedding).",
    ),
    click.option("--sidecar", is_flag=True, help="Write a JSON file beside each result."),
    click.option(
        "--watch", is_flag=True, help="Go on looking for new photos in SRC, until interrupted."
    ),
    click.option("--allow-http", is_flag=True, help="Fetch http and https addresses of a list."),
    click.option(
        "--allow-private",
        is_flag=True,
        help="With --allow-http: also from this machine and its private networks.",
    ),
    click.option(
        "--overwrite", is_flag=True, help="Replace files that lie in DST and are not of this run."
    ),
    click.option("--dry-run", is_flag=True, help="List and check, then stop."),
)
_TITLES = (
    ("Model", model_options),
    ("Faces", face_options),
    ("Outputs", output_options),
    ("Batch", _batch_options),
    ("Run", state_options),
    ("Devices", device_option),
    ("", runtime_options),
    ("", pace_options),
    ("Progress", show_options),
)
run_options = together(*(options for _, options in _TITLES))
"""All of `run`."""


def write_run_options(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """List the options of `run` in the help of the group, by topic."""
    rows: dict[str, list[tuple[str, str]]] = {}
    title = ""
    for heading, options in _TITLES:
        title = heading or title
        probe = click.Command("probe", callback=options(lambda **_: None))
        probe.params = list(reversed(getattr(probe.callback, "__click_params__", [])))
        found = (param.get_help_record(ctx) for param in probe.params)
        rows.setdefault(title, []).extend(row for row in found if row)
    rows["Progress"].append(("-h, --help", "Show this message and exit."))
    for heading, lines in rows.items():
        with formatter.section(f"{heading} options"):
            formatter.write_dl(lines)


resume_options = together(device_option, pace_options, state_options, show_options)
"""Those that may differ when a run is resumed by its destination alone."""
