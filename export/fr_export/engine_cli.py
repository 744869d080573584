"""`fr-deploy export engine`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fr_export.engine import EngineBuilt
    from fr_export.engine_process import Step

_PRECISIONS = {"fp16": "float16", "fp32": "float32"}


@click.command(short_help="Build an ONNX file into an engine of TensorRT or TensorRT-RTX.")
@click.argument("onnx", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="FILE.engine.",
)
@click.option(
    "--flavour",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    default="tensorrt-rtx",
    show_default=True,
    help="TensorRT-RTX builds without a GPU, for RTX GPUs; TensorRT on the GPU it is for.",
)
@click.option(
    "--batches",
    multiple=True,
    default=["1:4:8"],
    show_default=True,
    help="LEAST:BEST:MOST, or one number for a static batch. Again for each further profile.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(_PRECISIONS)),
    default="fp16",
    show_default=True,
    help="Of the ONNX file; a file of the other is refused.",
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
    help="Most GPU memory for a layer's scratch.",
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="TensorRT: folder of measured kernel times, which make later builds faster.",
)
@click.option("--dry-run", is_flag=True, help="Say what the build will take, and build nothing.")
def engine(onnx: Path, output: Path, dry_run: bool, **given: Any) -> None:
    """Build the file ONNX into an engine of TensorRT or TensorRT-RTX.

    The graph decides the precision: write it with `fr-deploy export onnx --dtype fp16`. The build runs in a process of
    its own, whose memory and seconds are printed. Exits with 5 if TensorRT refuses the graph, with 6 if its package,
    a GPU or memory is missing.
    """
    from fr_export.engine import build_engine
    from fr_export.engine_estimate import estimate_engine, require_room
    from fr_export.engine_graph import read_graph
    from fr_export.engine_options import BatchRange, EngineOptions

    workspace: int | None = given["workspace"]
    options = EngineOptions(
        flavour=given["flavour"],
        batches=tuple(map(BatchRange.of, given["batches"])),
        precision=_PRECISIONS[given["dtype"]],  # pyright: ignore[reportArgumentType]
        capabilities=given["capabilities"],
        workspace=None if workspace is None else workspace * 1_000_000,
        timing_cache=given["timing_cache"],
    )
    if dry_run:
        estimate = estimate_engine(read_graph(onnx), output, options)
        click.echo(f"{onnx}: {estimate}")
        require_room(estimate)
    else:
        with _Bar() as bar:
            built = build_engine(onnx, output, options, progress=bar.show)
        click.echo(_summary(built))


def _summary(built: "EngineBuilt") -> str:
    target = ", ".join(built.capabilities) or "8.0 and later"
    return (
        f"{built.path}  {built.bytes / 1e6:.1f} MB, {built.flavour} {built.version}, compute capability {target}\n"
        f"{built.layers} layers, {built.half:.0%} of the multiplications in half precision; "
        f"{built.seconds:.1f} s, up to {built.peak_bytes / 1e9:.2f} GB of memory\nsha256 {built.sha256}"
    )


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
        self._task = self._bar.add_task("reading the graph", total=None)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, step: "Step") -> None:
        """Follow a build."""
        if step.parent is None:
            self._bar.update(self._task, completed=step.done, total=step.steps)
        name = f"{step.phase}, {step.peak_bytes / 1e9:.1f} GB"
        self._bar.update(self._task, description=name)
