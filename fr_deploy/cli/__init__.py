"""The `fr-deploy` command: names its subcommands, and imports one only when it runs."""

import importlib
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from fr_deploy import __version__
from fr_deploy.errors import FrDeployError


class _Subcommand(NamedTuple):
    target: str
    """`module:attribute`."""
    summary: str
    """One line for `--help`, known without importing the module."""


COMMANDS = {
    "restore": _Subcommand("fr_deploy.cli.restore:restore", "Restore the faces in photos."),
    "serve-batch": _Subcommand(
        "fr_deploy.cli.serve_batch:serve_batch",
        "Restore photos by the million; resumable, each with one outcome.",
    ),
    "import-sd": _Subcommand(
        "fr_deploy.cli.import_sd:import_sd",
        "Turn a Stable Diffusion 2.1-base FOLDER (diffusers layout) into a bundle to train.",
    ),
    "doctor": _Subcommand(
        "fr_deploy.cli.doctor:doctor", "Say what works on this machine, and why the rest does not."
    ),
    "inspect": _Subcommand(
        "fr_deploy.cli.inspect:inspect",
        "Count parameters, FLOPs and GPU launches of BUNDLE_OR_PRESET, unfolded and folded.",
    ),
    "train": _Subcommand("fr_training.cli:train", "Run one training STAGE."),
    "data": _Subcommand("fr_training.cli:data", "Make training data."),
    "eval": _Subcommand(
        "fr_training.cli:evaluate",
        "Score a restorer on held-out faces against doing nothing, bilateral and non-local means.",
    ),
    "bundle": _Subcommand(
        "fr_training.cli:bundle", "Write the result of a training RUN as a bundle."
    ),
    "export": _Subcommand(
        "fr_export.cli:export",
        "Write a bundle as ONNX files or engines, compared with it.",
    ),
    "verify": _Subcommand(
        "fr_export.cli:verify", "Hold an exported directory to the model it was made from."
    ),
    "sign": _Subcommand("fr_deploy.cli.sign:sign", "Sign an exported directory."),
    "bench": _Subcommand(
        "fr_bench.cli:bench",
        "Measure speed on this machine; the last line printed is one JSON document.",
    ),
}
_EXTRAS = {"tensorboard": "train", "h5py": "train", "playwright": "report"}
_HELP_WIDTH = 100
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group whose subcommands are imported by name, and that turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table, not of the alphabet."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].target.split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; an expected error is a message and an exit code, not a traceback."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            _fail("interrupted", _INTERRUPTED)
        except Exception as error:
            if ctx.params["debug"]:
                traceback.print_exc()
            _fail(*_message_and_code(error))


def _message_and_code(error: Exception) -> tuple[str, int]:
    if isinstance(error, FrDeployError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("fr_"):
        name = (error.name or "").partition(".")[0]
        package = f'"fr-deploy[{_EXTRAS[name]}]"' if name in _EXTRAS else name
        return f"this command needs {name}, which is not installed: pip install {package}", 6
    text = f"unexpected {type(error).__name__}: {error}\n  fr-deploy --debug ... shows where"
    return text, 1


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"fr-deploy: {message}", err=True)
    raise SystemExit(code)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", message="fr-deploy %(version)s")
@click.option(
    "--debug", is_flag=True, envvar="FR_DEPLOY_DEBUG", help="Show the traceback of an error."
)
def main(debug: bool) -> None:
    """One-step diffusion face restoration, from weights to results.

    \b
    Exit codes: 0 all well, 1 a bug, 2 wrong usage, 3 some photos failed, 4 no usable photo,
    5 a model is missing or does not match, 6 memory, disk or a package is missing, 130 interrupted.
    """
    if debug:  # shows what fr_deploy logs; _LazyGroup.invoke reads the flag for tracebacks
        import logging

        logging.basicConfig()
        logging.getLogger("fr_deploy").setLevel(logging.DEBUG)


def help_text(name: str) -> str:
    """The help of `fr-deploy` itself or of one subcommand, 100 columns wide."""
    root = click.Context(
        main,
        info_name="fr-deploy",
        terminal_width=_HELP_WIDTH,
        max_content_width=_HELP_WIDTH,
        **main.context_settings,
    )
    if name == root.info_name:
        return root.get_help() + "\n"
    command = main.get_command(root, name)
    assert command is not None
    return command.get_help(click.Context(command, root, name)) + "\n"


def help_texts() -> dict[str, str]:
    """All help texts, by name."""
    return {name: help_text(name) for name in ("fr-deploy", *COMMANDS)}


def write_help_texts(folder: Path) -> None:
    """Write `help_texts()` as `<name>.txt` files, as they are committed in docs/help."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in help_texts().items():
        (folder / f"{name}.txt").write_text(text)
