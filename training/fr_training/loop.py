"""The training loop: one function, read in a sitting. Progress is counted in images; the same command resumes."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr_deploy.bundle import load_bundle
from fr_deploy.errors import UsageError
from fr_deploy.models.lafr import LafrModel, StaticTime
from fr_deploy.models.presets import PRESETS
from fr_training.data import Batch, batches
from fr_training.faces import FaceCorpus
from fr_training.precision import autocast, memory_format
from fr_training.presets import RECIPES, Recipe
from fr_training.stages import STAGES, Stage
from fr_training.training_log import TrainingLog

ORDER = ("vae", "adapter", "restorer", "polish", "finish")
WEIGHTS = "model.pt"
SAVE_SECONDS = 30.0
"""At least so long between two checkpoints: a fast GPU sees a thousand images in less time than writing one takes."""


@dataclass(frozen=True)
class RunOptions:
    """Where and how a stage runs; what it optimises is its `Recipe`."""

    data: Path
    out: Path
    start: str | None = None
    """A bundle to start from instead of the stage before."""
    device: str = "cpu"
    seed: int = 0
    save_every: int = 1000
    log_every: int = 200
    workers: int = 2
    minutes: float | None = None
    """Length in minutes of training, over all calls, instead of the recipe's images."""


def fit(recipe: Recipe, options: RunOptions, report: Callable[[str], None] = print) -> None:
    """Run one stage to its end, resuming from `out/<stage>/last.pt` when it is there.

    Starts from `options.start` or from the stage before, `out/<stage before>/model.pt`, and ends by writing its own,
    with exponentially averaged weights.

    Raises:
        UsageError: the stage before has not finished, or the checkpoint belongs to another recipe.
    """
    folder = options.out / recipe.stage
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    corpus = FaceCorpus.open(options.data)
    torch.manual_seed(options.seed)
    model = LafrModel(PRESETS[recipe.preset])
    if options.start is None:
        _load_stage_before(model, recipe, options.out)
    else:
        _load_start(model, options.start)
    model.to(device, memory_format=memory_format(device)).train()  # pyright: ignore[reportCallIssue]
    stage = STAGES[recipe.stage](model, recipe, device)
    state = _State(stage, recipe)
    state.resume(folder / "last.pt")
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    log, first, seconds = TrainingLog(folder, report), state.images, state.seconds
    started = saved = time.monotonic()
    stream = batches(corpus, recipe, options.seed, state.images, workers=options.workers)
    while (progress := state.progress(options.minutes)) < 1:
        torch.manual_seed(options.seed * 1_000_003 + state.images)
        batch = Batch(*(part.to(device) for part in next(stream)))
        parts, image = _train_step(state, batch, progress)
        before, state.images = state.images, state.images + recipe.batch
        state.seconds = seconds + time.monotonic() - started
        if _crossed(before, state.images, options.log_every):
            rate = (state.images - first) / (time.monotonic() - started)
            log.scalars(state.images, {**parts, "images_per_s": rate})
        if _crossed(before, state.images, options.save_every) and time.monotonic() >= saved:
            log.samples(state.images, batch, image)
            state.save(folder / "last.pt")
            saved = time.monotonic() + SAVE_SECONDS
    state.save(folder / "last.pt")
    state.use_average()
    model.eval()
    stage.finish(batches(corpus, recipe, options.seed + 1, 0, workers=1))
    save_model(model, folder / WEIGHTS)
    report(f"{recipe.stage}: {state.images} images, weights in {folder / WEIGHTS}")


def _train_step(
    state: "_State", batch: Batch, progress: float
) -> tuple[dict[str, float], Tensor | None]:
    stage, recipe = state.stage, state.recipe
    state.set_lr(recipe.lr * _schedule(state.images, progress, recipe))
    with autocast(stage.device):
        losses = stage.loss(batch, progress)
    state.optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    norm = torch.nn.utils.clip_grad_norm_(stage.params, 1.0)
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError(f"gradient is {float(norm)} at image {state.images}; lower --lr")
    state.optimizer.step()
    parts = {**losses.parts, "loss": losses.total, "grad_norm": norm}
    if state.optimizer_d is not None and losses.image is not None and progress > 0.2:
        with autocast(stage.device):
            parts["discriminator"] = stage.discriminator_loss(batch.clean, losses.image)
        state.optimizer_d.zero_grad(set_to_none=True)
        parts["discriminator"].backward()
        state.optimizer_d.step()
    state.average_step()
    return {key: float(value.detach()) for key, value in parts.items()}, losses.image


def _schedule(images: int, progress: float, recipe: Recipe) -> float:
    """Linear warm-up by images, then half a cosine down to 2 % at progress 1."""
    if images < recipe.warmup:
        return (images + recipe.batch) / (recipe.warmup + recipe.batch)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


class _State:
    """Everything a checkpoint holds: weights, their average, optimisers, images seen."""

    def __init__(self, stage: Stage, recipe: Recipe) -> None:
        self.stage, self.recipe, self.images, self.seconds = stage, recipe, 0, 0.0
        self.optimizer = torch.optim.AdamW(stage.params, recipe.lr, (0.9, 0.99), weight_decay=1e-4)
        self.optimizer_d = None
        if stage.discriminator is not None:
            weights = stage.discriminator.parameters()
            self.optimizer_d = torch.optim.AdamW(weights, 2e-4, (0.5, 0.99))
        self.average = [p.detach().clone() for p in stage.params]

    def progress(self, minutes: float | None) -> float:
        """From 0 to 1 over the stage: by images, or by the time that all its calls have trained."""
        return self.seconds / (60 * minutes) if minutes else self.images / self.recipe.images

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def average_step(self) -> None:
        """The average's memory grows with the run, so that early noise is forgotten quickly."""
        steps = self.images / self.recipe.batch
        decay = min(self.recipe.ema, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self.average, self.stage.params, 1 - decay)  # pyright: ignore[reportPrivateUsage]

    @torch.no_grad()
    def use_average(self) -> None:
        for p, a in zip(self.stage.params, self.average, strict=True):
            p.copy_(a)

    def save(self, path: Path) -> None:
        state: dict[str, Any] = {
            "images": self.images,
            "seconds": self.seconds,
            "recipe": asdict(self.recipe),
            "model": self.stage.model.state_dict(),
            "scaling": self.stage.model.scaling,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "stage": self.stage.state(),
        }
        if self.optimizer_d is not None and self.stage.discriminator is not None:
            state["discriminator"] = self.stage.discriminator.state_dict()
            state["optimizer_d"] = self.optimizer_d.state_dict()
        _save_atomically(state, path)

    def resume(self, path: Path) -> None:
        if not path.exists():
            return
        state = torch.load(path, map_location=self.stage.device, weights_only=True)
        changed = {
            key: (value, getattr(self.recipe, key))
            for key, value in state["recipe"].items()
            if key in ("preset", "stage", "batch", "crop") and value != getattr(self.recipe, key)
        }
        if changed:
            raise UsageError(f"{path} is of another recipe: {changed}; choose another --out")
        # A checkpoint without seconds is of a run by images, which does not ask for them.
        self.images, self.seconds = state["images"], state.get("seconds", 0.0)
        self.stage.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.stage.load_state(state["stage"])
        if self.optimizer_d is not None and self.stage.discriminator is not None:
            self.stage.discriminator.load_state_dict(state["discriminator"])
            self.optimizer_d.load_state_dict(state["optimizer_d"])


def _save_atomically(state: dict[str, Any], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def save_model(model: LafrModel, path: Path) -> None:
    """Weights and latent scale of a stage's result."""
    _save_atomically({"model": model.state_dict(), "scaling": model.scaling}, path)


def load_model(model: LafrModel, path: Path) -> None:
    """Undo `save_model`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if (time := state["model"].get("unet.time_embedding.embedding")) is not None:
        model.unet.time_embedding = StaticTime(time)  # the run started from a bundle
    model.load_state_dict(state["model"])
    model.vae.register_to_config(scaling_factor=state["scaling"])


def _load_stage_before(model: LafrModel, recipe: Recipe, out: Path) -> None:
    index = ORDER.index(recipe.stage)
    if index:
        path = out / ORDER[index - 1] / WEIGHTS
        if not path.exists():
            before = f"fr-deploy train {ORDER[index - 1]} --preset {recipe.preset} --out {out}"
            raise UsageError(f"{path} is missing: run first: {before}")
        load_model(model, path)


def _load_start(model: LafrModel, bundle: str) -> None:
    """Weights of a bundle of the same preset, its stored time embedding included."""
    start = load_bundle(bundle)
    if start.preset != model.preset:
        raise UsageError(f"{bundle} is not of preset {model.preset.name}, as this run is")
    model.unet.time_embedding = start.unet.time_embedding
    model.load_state_dict(start.state_dict())
    model.vae.register_to_config(scaling_factor=start.scaling)


def last_weights(out: Path) -> Path:
    """The weights of the last finished stage that can restore.

    Raises:
        UsageError: none of `restorer`, `polish`, `finish` has ended.
    """
    for stage in ("finish", "polish", "restorer"):
        if (path := out / stage / WEIGHTS).exists():
            return path
    raise UsageError(
        f"{out}: no {WEIGHTS} of restorer, polish or finish; run: fr-deploy train restorer --out {out}"
    )


def recipe_for(preset: str, stage: str) -> Recipe:
    """The committed recipe of a preset's stage.

    Raises:
        UsageError: there is none.
    """
    if (preset, stage) not in RECIPES:
        known = sorted({key[0] for key in RECIPES})
        raise UsageError(
            f"no recipe for {stage} of {preset!r}; presets with recipes: {', '.join(known)}"
        )
    return RECIPES[preset, stage]


__all__ = ["RunOptions", "fit", "last_weights", "load_model", "recipe_for", "save_model"]
