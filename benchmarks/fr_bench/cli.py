"""`fr-deploy bench`."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from fr_deploy.cli.options import Command


def _results_option(name: str, when: str = "") -> Callable[[Command], Command]:
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("benchmarks/results"),
        show_default=True,
        help=f"Folder to append {name}.csv and {name}.jsonl in{when}.",
    )


@click.group()
def bench() -> None:
    """Measure speed on this machine; the last line printed is one JSON document."""


@bench.command()
@click.option(
    "--model",
    default="lafr-mini",
    show_default=True,
    help="Embedded name, bundle folder or hub id.",
)
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(min=3))
@_results_option("restore")
def restore(model: str, repeats: int, output: Path) -> None:
    """Time the restoration of one aligned face, against plain diffusers modules.

    The two run in turns in one process. If their pictures differ, nothing is timed and the exit code is 5.
    """
    from fr_bench.restore import bench_restore
    from fr_bench.rows import append_json, append_rows

    result = bench_restore(model, repeats=repeats)
    for row in result.rows():
        click.echo(
            f"{row.technique:<16} best {row.best_ms:9.1f} ms   p20 {row.p20_ms:9.1f}   "
            f"p50 {row.p50_ms:9.1f}   p80 {row.p80_ms:9.1f}"
        )
    agreement = result.agreement
    quality = f"{agreement.psnr:.1f} dB apart" if agreement.largest else "identical"
    click.echo(f"plain diffusers over fr-deploy: {result.ratio}; pictures {quality}")
    append_rows(output / "restore.csv", result.rows())
    click.echo(append_json(output / "restore.jsonl", result.document()))


@bench.command()
@click.option(
    "--model",
    default="lafr-mini",
    show_default=True,
    help="A bundle; or lafr-sd21: random weights at full size.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto")
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(min=1),
    default=(1,),
    show_default=True,
    help="Faces a call; repeatable.",
)
@click.option("--repeats", default=9, show_default=True, type=click.IntRange(min=3))
@click.option("--without", multiple=True, help="A technique to leave out; repeatable.")
@_results_option("pipeline")
def pipeline(
    model: str,
    device: str,
    dtype: str,
    batches: tuple[int, ...],
    repeats: int,
    without: tuple[str, ...],
    output: Path,
) -> None:
    """Time the whole restoration in every way this machine can, in turns, in one process.

    Same weights, fresh random faces. If a picture is outside the contract, nothing is timed and the
    exit code is 5.
    """
    from fr_bench.pipeline import PipelineRow, bench_pipeline
    from fr_bench.rows import append_json, append_rows
    from fr_deploy.runtime.devices import choose_place

    def show(row: PipelineRow) -> None:
        quality = "identical" if row.psnr_db is None else f"{row.psnr_db:.1f} dB"
        click.echo(
            f"{row.technique:<26} batch {row.batch:<3} best {row.best_ms:9.1f} ms  p50 {row.p50_ms:9.1f} "
            f"(p20 {row.p20_ms:.1f}, p80 {row.p80_ms:.1f})  {row.images_per_s:8.2f} faces/s  "
            f"{row.share_of_matmul:5.0%} of matmul  {quality}"
        )

    place = choose_place(device, dtype)
    done = bench_pipeline(model, place, batches, repeats=repeats, without=without, show=show)
    for note in done.notes:
        click.echo(note)
    for batch, ratios in done.ratios.items():
        for name, measured in ratios.items():
            click.echo(f"batch {batch}, {name}: {measured}")
    append_rows(output / "pipeline.csv", done.rows, PipelineRow)
    click.echo(append_json(output / "pipeline.jsonl", done.document()))


@bench.command()
@click.option("--op", "ops", multiple=True, help="Repeatable [default: every op].")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(("eager", "compile", "sdpa", "xformers")),
    default=("eager", "compile", "sdpa"),
    show_default=True,
    help="Repeatable.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(("fp16", "bf16", "fp32", "uint8")),
    default=("fp16", "bf16", "fp32", "uint8"),
    show_default=True,
    help="Repeatable.",
)
@_results_option("kernels", "; on a GPU alone")
def kernels(
    ops: tuple[str, ...], peers: tuple[str, ...], dtypes: tuple[str, ...], output: Path
) -> None:
    """Hold every kernel to its error budget, then time it against its peers.

    On a CPU small shapes are checked and work is counted; times need a GPU. An op outside its budget
    is not timed, and the exit code is 5.
    """
    _interpret_without_gpu()
    from fr_bench.kernel_rows import KernelRow, table_line, time_line
    from fr_bench.kernels import bench_kernels, known_ops
    from fr_bench.rows import append_json, append_rows

    wanted = known_ops(ops)
    document, rows = bench_kernels(
        wanted,
        peers,
        dtypes,
        lambda checked: click.echo(table_line(checked)),
        lambda row: click.echo(time_line(row)),
    )
    if rows:
        append_rows(output / "kernels.csv", rows, KernelRow)
        click.echo(append_json(output / "kernels.jsonl", document))
        return
    click.echo("no times: they need a GPU, and this machine has none that torch can use")
    click.echo(json.dumps(document))


@bench.command("serve-batch")
@click.option(
    "--device",
    default="fake:6ms+7ms",
    show_default=True,
    help="A fake one: the time of a batch, and of each face in it.",
)
@click.option("--photos", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--crops", default=480, show_default=True, type=click.IntRange(min=1))
@click.option("--preparers", type=click.IntRange(min=1), help="As of serve-batch.")
@click.option("--finishers", type=click.IntRange(min=1), help="As of serve-batch.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=3))
@_results_option("serve-batch")
def serve_batch(
    device: str,
    photos: int,
    crops: int,
    preparers: int | None,
    finishers: int | None,
    repeats: int,
    output: Path,
) -> None:
    """Time serve-batch on a fake device, in turns with a plain loop, and see how busy it keeps the device.

    Photos of 2 megapixels, JPEG to PNG, by both; then the same and aligned faces of 512 px, JPEG to JPEG in batches of
    16. They are made; each command is timed as a whole.

    If the two write different pixels, nothing is timed and the exit code is 5.
    """
    import tempfile

    from fr_bench.rows import append_json, append_rows
    from fr_bench.serve_batch import Job, ServeBatchRow, bench_serve_batch

    asked = {"--preparers": preparers, "--finishers": finishers}
    more = [text for name, value in asked.items() if value for text in (name, str(value))]
    with tempfile.TemporaryDirectory(prefix="fr-bench-") as folder:
        done = bench_serve_batch(Job(Path(folder), device, photos, crops, repeats, more))
    for row in done.rows:
        busy = "" if row.device_busy is None else f"   device busy {row.device_busy:.1%}"
        click.echo(
            f"{row.task:<36} {row.technique:<12} {row.images_per_s:8.2f} images/s   best {row.best_s:.2f} s   "
            f"p50 {row.p50_s:.2f} s{busy}"
        )
    click.echo(f"naive loop over serve-batch: {done.ratio}; pictures identical")
    append_rows(output / "serve-batch.csv", done.rows, ServeBatchRow)
    click.echo(append_json(output / "serve-batch.jsonl", done.document()))


def _interpret_without_gpu() -> None:
    """Start again with Triton's interpreter on: it must be set before torch imports Triton."""
    import torch

    from fr_kernels.dispatch import interpreting

    if not torch.cuda.is_available() and not interpreting():
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "fr_deploy", *sys.argv[1:]], environment)
