"""`fr-deploy export` and `fr-deploy verify`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fr_deploy.cli.lora import lora_option

if TYPE_CHECKING:
    from fr_export.engine_process import Step

photos_option = click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of photos whose faces are compared, too.",
)


@click.command(short_help="Write a bundle as ONNX files or engines, compared with it.")
@click.argument("words", metavar="MODEL [KEY=VALUE]...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="DIR."
)
@lora_option
@click.option(
    "--format",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    help="TensorRT-RTX builds without a GPU, for RTX GPUs; TensorRT on the GPU it is for.  [default: onnx]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "fp32"]),
    help="Of the weights and most of the work; bf16 for engines.  [default: fp32 for onnx, fp16 for engines]",
)
@click.option(
    "--batch",
    metavar="LEAST:BEST:MOST",
    help="Batches, or one number.  [default: 1:8:16 for onnx, 1:4:8 for engines]",
)
@click.option("--buckets", metavar="N,N,...", help="Static batches in place of a range; engines.")
@click.option(
    "--whole", is_flag=True, help="One graph, in place of encoder, adapter, UNet, decoder."
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="TensorRT-RTX: a GPU it is for, such as 8.9; may be given again.  [default: portable, 8.0 and later]",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Engines: most GPU memory for a layer's scratch.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="TensorRT: folder of measured kernel times, which make later builds faster.",
)
@photos_option
@click.option("--dry-run", is_flag=True, help="Say what it will take, and write nothing.")
def export(words: tuple[str, ...], output: Path, dry_run: bool, **given: Any) -> None:
    """Write MODEL as a directory of ONNX files or engines that were compared with it.

    MODEL is an embedded name, a folder or a hub id. Every graph is run on fixed faces beside the float32 one; below the
    floors (fp32 60 dB, fp16 and bf16 40 dB) no manifest is written and the exit code is 5. An export that was stopped
    goes on where it was. `format=engine half=True` is understood, too.
    """
    from fr_deploy.models.lora import parse_lora
    from fr_export.directory import export
    from fr_export.dry_run import dry_run as estimate

    model, options = _options(words, given)
    options["loras"] = [parse_lora(text) for text in given["loras"]]
    if dry_run:
        estimate(model, output, say=click.echo, **options)
        return
    with _Bar() as bar:
        export(model, output, photos=given["photos"], say=click.echo, progress=bar.show, **options)


def _options(words: tuple[str, ...], given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model, and the options of `fr_export.export`."""
    from fr_deploy.errors import UsageError
    from fr_export.spoken import spoken

    said = spoken(words)
    twice = [name for name in said if given.get(name) is not None]
    if twice:
        raise UsageError(f"{twice[0]} is given twice: {twice[0]}=... and --{twice[0]}")
    named = {k: given[k] for k in ("format", "precision", "batch") if given[k] is not None} | said
    if "model" not in named:
        raise UsageError(
            "no model is named; give a bundle, such as: fr-deploy export lafr-mini -o DIR"
        )
    workspace, buckets = given["workspace"], given["buckets"]
    return named.pop("model"), {
        "format": "onnx",
        **named,
        "buckets": () if buckets is None else _numbers(buckets),
        "whole": given["whole"],
        "capabilities": given["capabilities"],
        "workspace": None if workspace is None else workspace * 1_000_000,
        "timing_cache": given["timing_cache"],
    }


def _numbers(text: str) -> tuple[int, ...]:
    from fr_deploy.errors import UsageError

    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise UsageError(f"buckets are {text!r}; allowed are numbers with commas, as in 1,4,8")
    return tuple(map(int, text.split(",")))


@click.command(short_help="Hold an exported directory to the model it was made from.")
@click.argument(
    "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True)
)
@click.option(
    "--model", help="What it was made from.  [default: the embedded bundle of its preset]"
)
@lora_option
@photos_option
@click.option("--bisect", is_flag=True, help="Name the first tensor that departs.")
def verify(
    folder: Path, model: str | None, loras: tuple[str, ...], photos: Path | None, bisect: bool
) -> None:
    """Hold the ONNX files in DIR to the float32 graph of the model they were made from.

    They are written anew and must be the same, byte by byte, where the versions are; and run in onnxruntime, their
    outputs, pictures, codes and identities are compared. Exits with 5, and takes the manifest away, if they compute
    something else.
    """
    from fr_deploy.models.lora import parse_lora
    from fr_export.verification import verify_directory

    loras_given = [parse_lora(text) for text in loras]
    verify_directory(folder, model, loras=loras_given, photos=photos, bisect=bisect, say=click.echo)


class _Bar:
    """The outermost phase as a bar, the innermost one by name, and seconds; nothing in a pipe."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TimeElapsedColumn(),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._file, self._task = "", self._bar.add_task("", total=None)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, file: str, step: "Step") -> None:
        """Follow a build."""
        if file != self._file:
            self._file = file
            self._bar.reset(self._task)
        if step.parent is None:
            self._bar.update(self._task, completed=step.done, total=step.steps)
        name = f"{file}: {step.phase}, {step.peak_bytes / 1e9:.1f} GB"
        self._bar.update(self._task, description=name)
