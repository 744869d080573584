"""Importing Stable Diffusion 2.1-base: the full key set at narrow widths, saved by diffusers itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fr_deploy.bundle import load_bundle
from fr_deploy.cli.import_sd import import_sd
from fr_deploy.errors import ModelError
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.sd_import import PROMPT, lafr_from_sd
from tests_support import SD21_UNET, SD21_VAE

TEXT_WIDTH = 24


def _tokenizer(folder: Path) -> None:
    folder.mkdir()
    letters = sorted(set("facehighquality, "))
    tokens = ["!", *letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=77
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    narrow = SD21_UNET | {
        "block_out_channels": [32, 32, 64, 64],
        "attention_head_dim": [2, 2, 4, 4],
        "norm_num_groups": 16,
        "cross_attention_dim": TEXT_WIDTH,
        "sample_size": 16,
    }
    UNet2DConditionModel.from_config(narrow).save_pretrained(folder / "unet")
    vae = SD21_VAE | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 16}
    AutoencoderKL.from_config(vae).save_pretrained(folder / "vae")
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=TEXT_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_act="gelu",
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(folder / "scheduler")
    _tokenizer(folder / "tokenizer")
    return folder


@torch.no_grad()
def test_the_bundle_computes_what_diffusers_and_transformers_compute(
    sd_folder: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        import_sd,
        [str(sd_folder), "-o", str(tmp_path / "bundle"), "--dtype", "fp32"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    model = load_bundle(tmp_path / "bundle", allow_untrained=True)
    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    unet = UNet2DConditionModel.from_pretrained(sd_folder / "unet")
    tokenizer = CLIPTokenizer.from_pretrained(sd_folder / "tokenizer")
    text = CLIPTextModel.from_pretrained(sd_folder / "text_encoder")
    ids = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    z = vae.encode(image).latent_dist.mode() * 0.18215
    assert torch.equal(model.encode(image), z)
    eps = unet(z, 999, text(ids)[0]).sample
    x0 = DDPMScheduler.from_pretrained(sd_folder / "scheduler", clip_sample=False).step(eps, 999, z)
    expected = vae.decode(x0.pred_original_sample / 0.18215).sample
    got = model.decode(model.denoise(z))
    scale = x0.pred_original_sample.abs().max()
    assert (model.denoise(z) - x0.pred_original_sample).abs().max() < 1e-4 * scale
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
    files = {p.name for p in (tmp_path / "bundle").iterdir()}
    assert files == {"model_index.json", "vae", "unet", "adapter", "static"}


def test_imported_preset_and_adapter(sd_folder: Path) -> None:
    model = lafr_from_sd(sd_folder)
    paper = PRESETS["lafr-sd21"]
    assert model.preset.unet_attention == paper.unet_attention
    assert model.preset.timestep == 999
    assert model.prompt.shape == (1, 77, TEXT_WIDTH)
    assert sum(p.numel() for p in model.adapter.parameters()) == pytest.approx(5.14e6, rel=0.01)


def test_refusals(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no vae"):
        lafr_from_sd(tmp_path)
    copy = tmp_path / "v"
    shutil.copytree(sd_folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ModelError, match="v_prediction"):
        lafr_from_sd(copy)
    path.write_text("{}")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="unet"):
        lafr_from_sd(copy)


def test_other_head_widths_are_refused(sd_folder: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.x: 8 heads at every level. The same shapes, so nothing else would notice."""
    copy = tmp_path / "v1"
    shutil.copytree(sd_folder, copy)
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_head_dim": 2}))
    with pytest.raises(ModelError, match="heads are"):
        lafr_from_sd(copy)
