"""`fr-deploy bench`."""

from pathlib import Path

import click


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
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Folder to append restore.csv and restore.jsonl in.",
)
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
    quality = "identical" if agreement.psnr_db is None else f"{agreement.psnr_db:.1f} dB apart"
    click.echo(f"plain diffusers over fr-deploy: {result.ratio}; pictures {quality}")
    append_rows(output / "restore.csv", result.rows())
    click.echo(append_json(output / "restore.jsonl", result.document()))
