"""`fr-deploy export`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fr_deploy.cli.lora import lora_option, with_loras
from fr_export.engine_cli import engine

if TYPE_CHECKING:
    from fr_deploy.models.restorer import RestorationGraph
    from fr_deploy.runtime.onnx_backend import OnnxBackend

_DTYPES = {"fp32": "float32", "fp16": "float16"}


@click.group()
def export() -> None:
    """Write a bundle's graph for other runtimes."""


export.add_command(engine)


@export.command("onnx")
@click.argument("bundle")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="FILE.onnx.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(_DTYPES)),
    default="fp32",
    show_default=True,
    help="Of the weights.",
)
@lora_option
@click.option(
    "--photos",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of photos whose faces are compared, too.  [default: the demo photos, in a checkout]",
)
def onnx(
    bundle: str, output: Path, dtype: str, loras: tuple[str, ...], photos: Path | None
) -> None:
    """Write BUNDLE as one ONNX file, and compare it in onnxruntime with the float32 graph.

    `faces` uint8 [batch, S, S, 3] RGB in, `restored` the same out; standard operators only. BUNDLE is an embedded
    name, a folder or a hub id. Exits with 5 if the pictures differ by more than rounding explains.
    """
    import torch

    from fr_deploy.bundle import load_graph
    from fr_deploy.runtime.onnx_backend import OnnxBackend
    from fr_export.onnx import export_onnx

    source = with_loras(bundle, loras, click.echo)
    graph = load_graph(source)
    name = _DTYPES[dtype]
    if name != "float32":
        graph = graph.to(getattr(torch, name))
    export_onnx(graph, output)
    click.echo(f"{output}  {output.stat().st_size / 1e6:.1f} MB, {graph.preset.name} in {name}")
    graph = graph if name == "float32" else load_graph(source)
    with OnnxBackend(output) as backend:
        _compare(graph, backend, name, photos)


def _compare(
    graph: "RestorationGraph", backend: "OnnxBackend", dtype: str, photos: Path | None
) -> None:
    from fr_deploy.runtime.agreement import random_pictures
    from fr_export.verify import compare, demo_photos, photo_faces, require

    sets = {"random pictures": random_pictures(backend.size, 2)}
    if folder := photos or demo_photos():
        sets[f"the photos in {folder.name}"] = photo_faces(folder, backend.size)
    agreements = {what: compare(graph, backend, faces) for what, faces in sets.items()}
    for what, agreement in agreements.items():
        click.echo(f"{what}: {agreement}")
    for what, agreement in agreements.items():
        require(agreement, dtype, what)
