"""`fr-deploy data`, `fr-deploy train` and `fr-deploy eval`."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import click

from fr_training.presets import RECIPES

_LEVELS = ("mild", "vqfr-v1", "vqfr-v2")


@click.group()
def data() -> None:
    """Make training data."""


@data.command("faces")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the corpus."
)
@click.option(
    "-n", "--count", default=1280, show_default=True, help="Faces, rounded up to shards of 64."
)
@click.option(
    "--first-seed",
    default=0,
    show_default=True,
    help="From 9000000 on: held out, refused by training.",
)
@click.option("--size", default=512, show_default=True, help="Side in pixels.")
@click.option("--batch", default=4, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
def faces(output: Path, count: int, first_seed: int, size: int, batch: int, device: str) -> None:
    """Generate FFHQ-aligned faces by seed; a shard that exists is kept, so the same command resumes."""
    from fr_training.faces import make_corpus

    make_corpus(
        output,
        count,
        first_seed=first_seed,
        size=size,
        batch=batch,
        device=device,
        on_progress=lambda done, total: click.echo(f"{done} of {total} faces"),
    )


@click.command()
@click.argument("stage", type=click.Choice(("vae", "adapter", "restorer", "polish", "finish")))
@click.option(
    "--preset",
    default="lafr-mini",
    show_default=True,
    type=click.Choice(sorted({p for p, _ in RECIPES})),
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Corpus of `fr-deploy data faces`.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run."
)
@click.option("--start", help="Bundle to start from instead of the stage before.")
@click.option(
    "--images", type=click.IntRange(min=1), help="Length in images [default: the recipe's]."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Length in minutes of training instead, over all calls: where a machine is there for so long.",
)
@click.option("--batch", type=click.IntRange(min=1), help="[default: the recipe's]")
@click.option(
    "--adversarial",
    type=click.FloatRange(min=0),
    help="Weight of that loss [default: the recipe's]",
)
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="[default: the recipe's]")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Threads that degrade faces.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the resolved recipe and stop.")
def train(
    stage: str,
    preset: str,
    data: Path,
    out: Path,
    start: str | None,
    images: int | None,
    minutes: float | None,
    batch: int | None,
    adversarial: float | None,
    lr: float | None,
    device: str,
    seed: int,
    workers: int,
    dry_run: bool,
) -> None:
    """Run one training STAGE. To resume, run the same command again."""
    from fr_training.loop import RunOptions, fit, recipe_for

    given = {"images": images, "batch": batch, "adversarial": adversarial, "lr": lr}
    recipe = replace(recipe_for(preset, stage), **{k: v for k, v in given.items() if v is not None})
    click.echo(json.dumps(asdict(recipe), indent=2))
    if not dry_run:
        options = RunOptions(data, out, start, device, seed, workers=workers, minutes=minutes)
        fit(recipe, options, click.echo)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle."
)
@click.option(
    "--preset",
    default="lafr-mini",
    show_default=True,
    type=click.Choice(sorted({p for p, _ in RECIPES})),
)
@click.option("--fp32", is_flag=True, help="Store float32 weights instead of float16.")
def bundle(run: Path, output: Path, preset: str, fp32: bool) -> None:
    """Write the result of a training RUN as a bundle."""
    import torch

    from fr_deploy.bundle import save_bundle
    from fr_deploy.models.lafr import LafrModel
    from fr_deploy.models.presets import PRESETS
    from fr_training.loop import last_weights, load_model

    model = LafrModel(PRESETS[preset])
    load_model(model, last_weights(run))
    save_bundle(model, output, dtype=torch.float32 if fp32 else torch.float16)
    click.echo(f"{output}")


@click.command("eval")
@click.option(
    "--model",
    default="lafr-mini",
    show_default=True,
    help="Embedded name, bundle folder or hub id.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("eval"), show_default=True
)
@click.option(
    "--generated", default=32, show_default=True, help="Held-out generated faces to score."
)
@click.option(
    "--level",
    "levels",
    multiple=True,
    default=_LEVELS,
    show_default=True,
    help="Degradation; repeatable.",
)
@click.option(
    "--vae-only", is_flag=True, help="Score clean faces through encoder and decoder alone."
)
def evaluate(
    model: str, output: Path, generated: int, levels: tuple[str, ...], vae_only: bool
) -> None:
    """Score a restorer on held-out faces against doing nothing, bilateral and non-local means."""
    from fr_training.scoring import score_model

    score_model(model, output, generated=generated, levels=levels, vae_only=vae_only)
