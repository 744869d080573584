"""The training loop at toy size: every stage runs, learns, resumes to the same weights, and refuses held-out seeds."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fr_deploy.bundle import load_bundle, save_bundle
from fr_deploy.errors import NoInputError, UsageError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_training.data import batch_at
from fr_training.faces import HELD_OUT_FROM, SHARD, FaceCorpus
from fr_training.loop import RunOptions, fit, last_weights, load_model, recipe_for
from fr_training.scoring import codebook_score
from fr_training.stages import STAGES as STAGE_CLASSES

STAGES = ("vae", "adapter", "restorer", "polish", "finish")


def _shapes(rng: np.random.Generator) -> np.ndarray:
    """A picture with structure at several scales, so that there is something to learn."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = [
        np.sin(2 * np.pi * (rng.uniform(-3, 3) * x + rng.uniform(-3, 3) * y)) for _ in range(3)
    ]
    return (np.stack(waves, -1) * 100 + 128).astype(np.uint8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    np.save(folder / "faces-00000000.npy", np.stack([_shapes(rng) for _ in range(SHARD)]))
    return folder


def _quiet(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    for stage in STAGES:
        fit(
            recipe_for("lafr-toy", stage),
            RunOptions(corpus, out, log_every=8, save_every=32),
            _quiet,
        )
    return out


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_every_stage_writes_weights_log_and_samples(run: Path) -> None:
    for stage in STAGES:
        lines = [json.loads(line) for line in (run / stage / "log.jsonl").read_text().splitlines()]
        assert all(np.isfinite(line["loss"]) for line in lines)
        assert json.loads((run / stage / "recipe.json").read_text())["stage"] == stage
        assert (run / stage / "model.pt").exists()
    assert list((run / "vae").glob("samples-*.png"))
    assert last_weights(run) == run / "finish" / "model.pt"


def test_stages_train_what_they_say(run: Path) -> None:
    vae, adapter, restorer = (
        _weights(run / s / "model.pt") for s in ("vae", "adapter", "restorer")
    )
    changed = {key.split(".")[0] for key in vae if not torch.equal(vae[key], adapter[key])}
    assert changed == {"adapter"}
    kept = [key for key in vae if key.startswith(("vae.encoder", "vae.quant"))]
    assert kept
    assert all(torch.equal(vae[key], restorer[key]) for key in kept)
    moved = {key.split(".")[0] for key in vae if not torch.equal(adapter[key], restorer[key])}
    assert moved == {"unet", "adapter", "vae", "prompt"}


def test_a_stage_starts_from_a_bundle(corpus: Path, run: Path, tmp_path: Path) -> None:
    model = LafrModel(PRESETS["lafr-toy"])
    load_model(model, run / "polish" / "model.pt")
    save_bundle(model, tmp_path / "start")
    recipe, out = recipe_for("lafr-toy", "finish"), tmp_path / "out"
    fit(recipe, RunOptions(corpus, out, str(tmp_path / "start"), log_every=8), _quiet)
    before, after = _weights(run / "polish" / "model.pt"), _weights(last_weights(out))
    again = LafrModel(PRESETS["lafr-toy"])
    load_model(again, last_weights(out))
    assert torch.equal(before["vae.quant_conv.weight"], after["vae.quant_conv.weight"])
    assert not torch.equal(before["unet.conv_in.weight"], after["unet.conv_in.weight"])
    assert torch.equal(again.time_embedding(), model.time_embedding())
    with pytest.raises(UsageError, match="not of preset lafr-toy"):
        fit(recipe, RunOptions(corpus, tmp_path / "other", "lafr-mini"), _quiet)


@pytest.mark.slow
def test_the_vae_learns(corpus: Path, tmp_path: Path) -> None:
    recipe = replace(recipe_for("lafr-toy", "vae"), images=480)
    fit(recipe, RunOptions(corpus, tmp_path, log_every=8), _quiet)
    losses = [
        json.loads(line)["l1"] for line in (tmp_path / "vae" / "log.jsonl").read_text().splitlines()
    ]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_resuming_gives_the_same_weights(corpus: Path, run: Path, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop_at_40(line: str) -> None:
        if line.startswith("images=40 "):
            raise Stopped

    options = RunOptions(corpus, tmp_path, log_every=8, save_every=32)
    with pytest.raises(Stopped):
        fit(recipe_for("lafr-toy", "vae"), options, stop_at_40)
    fit(recipe_for("lafr-toy", "vae"), options, _quiet)
    once, resumed = _weights(run / "vae" / "model.pt"), _weights(tmp_path / "vae" / "model.pt")
    assert all(torch.equal(once[key], resumed[key]) for key in once)


def test_a_stage_lasts_for_minutes_over_all_calls(corpus: Path, tmp_path: Path) -> None:
    recipe, lines = replace(recipe_for("lafr-toy", "vae"), warmup=0), list[str]()
    options = RunOptions(corpus, tmp_path, log_every=4, minutes=0.02)
    began = time.monotonic()
    fit(recipe, options, lines.append)
    assert 1.2 <= time.monotonic() - began < 20
    last = tmp_path / "vae" / "last.pt"
    first = torch.load(last, weights_only=True)
    assert 1.2 <= first["seconds"] < 20
    assert first["images"] != recipe.images
    fit(recipe, options, lines.append)  # nothing is left to do
    assert torch.load(last, weights_only=True)["images"] == first["images"]
    fit(recipe, replace(options, minutes=first["seconds"] / 60 + 0.02), lines.append)
    more = torch.load(last, weights_only=True)
    assert more["images"] > first["images"]
    assert more["seconds"] >= first["seconds"] + 1.2
    rates = [group["lr"] for group in more["optimizer"]["param_groups"]]
    assert max(rates) < 0.3 * recipe.lr  # near the end of the cosine, whatever the images


def test_batches_depend_on_the_image_number_alone(corpus: Path) -> None:
    faces = FaceCorpus.open(corpus)
    recipe = recipe_for("lafr-toy", "restorer")
    first, again, later = (batch_at(faces, recipe, 0, image) for image in (8, 8, 12))
    assert torch.equal(first.degraded, again.degraded)
    assert not torch.equal(first.degraded, later.degraded)
    assert not torch.equal(first.degraded, first.clean)


class _Plain(torch.nn.Module):
    """In place of lpips_hed, whose weights are fetched: the mean difference of each picture."""

    def features(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image]

    def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        return (a[0] - b[0]).abs().mean((1, 2, 3))


def test_the_perceptual_loss_weighs_each_damage_by_its_factor(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_training.stages.LpipsHed", _Plain)
    recipe = replace(
        recipe_for("lafr-toy", "restorer"),
        levels=(("mild", 1.0, 0.5), ("vqfr-v2", 1.0, 2.0)),
        batch=8,
        perceptual=1.0,
        window=64,
    )
    batch = batch_at(FaceCorpus.open(corpus), recipe, 0, 0)
    assert set(batch.emphasis.tolist()) == {0.5, 2.0}
    stage = STAGE_CLASSES["restorer"](LafrModel(PRESETS["lafr-toy"]), recipe, torch.device("cpu"))
    alone = (batch.degraded - batch.clean).abs().mean((1, 2, 3)) / 2
    weighed = stage.image_loss(batch.degraded, batch, 0.0).parts["lpips_hed"]
    torch.testing.assert_close(weighed, (alone * batch.emphasis).mean())


def test_held_out_seeds_and_wrong_order_are_refused(corpus: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    np.save(held / f"faces-{HELD_OUT_FROM:08d}.npy", np.zeros((SHARD, 64, 64, 3), np.uint8))
    with pytest.raises(UsageError, match="held out"):
        FaceCorpus.open(held)
    assert len(FaceCorpus.open(held, training=False)) == SHARD
    with pytest.raises(NoInputError, match="fr-deploy data faces"):
        FaceCorpus.open(tmp_path)
    with pytest.raises(UsageError, match="run first: fr-deploy train vae"):
        fit(recipe_for("lafr-toy", "adapter"), RunOptions(corpus, tmp_path / "new"), _quiet)
    with pytest.raises(UsageError, match="lafr-mini"):
        recipe_for("lafr-sd21", "vae")


def test_another_recipe_does_not_resume(corpus: Path, run: Path) -> None:
    recipe = replace(recipe_for("lafr-toy", "vae"), batch=2)
    with pytest.raises(UsageError, match="another recipe"):
        fit(recipe, RunOptions(corpus, run), _quiet)


def test_the_run_becomes_a_bundle_and_its_codebook_is_scored(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    model = LafrModel(PRESETS["lafr-toy"])
    load_model(model, last_weights(run))
    save_bundle(model, tmp_path / "bundle", dtype=torch.float16)
    loaded = load_bundle(tmp_path / "bundle")
    score = codebook_score(loaded, FaceCorpus.open(corpus)[0][None], "mild")
    assert 1 <= score.perplexity <= 32
    assert score.aligned != score.shuffled
    assert min(score[:3]) > 0
