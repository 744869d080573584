"""`fr-deploy import-sd`."""

from pathlib import Path

import click


@click.command("import-sd")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle."
)
@click.option(
    "--prompt", default="face, high quality", show_default=True, help="Fixed prompt, encoded once."
)
@click.option(
    "--timestep",
    default=999,
    show_default=True,
    type=click.IntRange(0, 999),
    help="t of the one step.",
)
@click.option("--dtype", default="fp16", show_default=True, type=click.Choice(("fp16", "fp32")))
def import_sd(folder: Path, output: Path, prompt: str, timestep: int, dtype: str) -> None:
    """Turn a Stable Diffusion 2.1-base FOLDER (diffusers layout) into a bundle to train.

    The text encoder runs once on the fixed prompt and is left out of the bundle. The adapter is new, so the
    bundle is marked untrained.
    """
    import torch

    from fr_deploy.bundle import save_bundle
    from fr_deploy.models.sd_import import lafr_from_sd

    model = lafr_from_sd(folder, prompt=prompt, timestep=timestep)
    kind = torch.float16 if dtype == "fp16" else torch.float32
    save_bundle(model, output, dtype=kind, trained=False)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    click.echo(f"{output}: {parameters:.1f} M parameters, prompt {prompt!r}, t = {timestep}")
