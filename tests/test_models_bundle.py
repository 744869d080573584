"""Bundles: round trip, and every way one can be wrong."""

import json
from pathlib import Path

import pytest
import torch

from fr_deploy.bundle import load_bundle, save_bundle
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS


@pytest.fixture(scope="module")
def model() -> LafrModel:
    torch.manual_seed(0)
    model = LafrModel(PRESETS["lafr-toy"]).eval().requires_grad_(False)
    model.vae.register_to_config(scaling_factor=0.7)
    return model


@pytest.fixture
def bundle(model: LafrModel, tmp_path: Path) -> Path:
    save_bundle(model, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_round_trip_is_exact(model: LafrModel, bundle: Path) -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    loaded = load_bundle(bundle)
    assert torch.equal(model(image), loaded(image))
    assert loaded.preset == model.preset
    assert loaded.scaling == 0.7
    assert not any(key.startswith("unet.time_embedding.linear") for key in loaded.state_dict())
    assert not list(bundle.parent.glob("*.part"))
    assert not [p for p in bundle.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_loaded_bundle_saves_again(bundle: Path, tmp_path: Path) -> None:
    save_bundle(load_bundle(bundle), tmp_path / "again")
    for path in sorted(bundle.rglob("*.safetensors")):
        assert (tmp_path / "again" / path.relative_to(bundle)).read_bytes() == path.read_bytes()


def test_half_precision_storage(model: LafrModel, tmp_path: Path) -> None:
    save_bundle(model, tmp_path / "half", dtype=torch.float16)
    loaded = load_bundle(tmp_path / "half")
    for key, value in model.adapter.state_dict().items():
        assert torch.equal(loaded.adapter.state_dict()[key], value.half().float())


def test_existing_folder_is_kept(model: LafrModel, bundle: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        save_bundle(model, bundle)


def test_untrained_is_refused_unless_asked_for(model: LafrModel, tmp_path: Path) -> None:
    save_bundle(model, tmp_path / "raw", trained=False)
    with pytest.raises(ModelError, match="not trained"):
        load_bundle(tmp_path / "raw")
    load_bundle(tmp_path / "raw", allow_untrained=True)


def _edit_index(bundle: Path, **changes: object) -> None:
    path = bundle / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damage_is_named(bundle: Path) -> None:
    weights = bundle / "adapter" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"adapter.*damaged"):
        load_bundle(bundle)
    weights.unlink()
    with pytest.raises(ModelError, match="missing"):
        load_bundle(bundle)


def test_other_family_missing_index_and_misfit(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a bundle"):
        load_bundle(tmp_path)
    preset = json.loads((bundle / "model_index.json").read_text())["preset"]
    _edit_index(bundle, preset=preset | {"code_dim": 9})
    with pytest.raises(ModelError, match="another shape"):
        load_bundle(bundle)
    _edit_index(bundle, preset={"surprise": 1})
    with pytest.raises(ModelError, match="does not fit"):
        load_bundle(bundle)
    _edit_index(bundle, family="gan")
    with pytest.raises(ModelError, match="'gan'"):
        load_bundle(bundle)


def test_nan_weights_are_refused(bundle: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = bundle / "adapter" / "model.safetensors"
    tensors = load_file(path)
    tensors["codebook.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ModelError, match="NaN"):
        load_bundle(bundle)


def test_unknown_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lafr-mini"):
        load_bundle("no-such-model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
        load_bundle("someone/some-model")
