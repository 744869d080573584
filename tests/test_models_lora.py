"""The command line's form of a LoRA, and the conversions that errors name."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import PeftModel
from safetensors.torch import save_file

from fr_deploy.bundle import load_bundle, save_bundle
from fr_deploy.errors import UsageError
from fr_deploy.models.fuse import fuse
from fr_deploy.models.lora import LoraFile, parse_lora
from lora_cases import kohya, peft_folder, toy, without_alphas


@pytest.mark.parametrize(
    ("text", "path", "scale", "alpha"),
    [
        ("a/b.safetensors", "a/b.safetensors", 1, None),
        ("a:0.8", "a", 0.8, None),
        ("a:-1e-1", "a", -0.1, None),
        ("C:/a:b", "C:/a:b", 1, None),
        ("a:2:alpha=rank", "a", 2, "rank"),
        ("a:alpha=16", "a", 1, 16),
    ],
)
def test_the_command_lines_form(text: str, path: str, scale: float, alpha: object) -> None:
    assert parse_lora(text) == LoraFile(Path(path), scale, alpha)


@pytest.mark.parametrize(
    "text", ["", ":2", "a:nan", "a:inf", "a:1:alpha=", "a:alpha=0", "a:alpha=no"]
)
def test_other_forms_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lora(text)


def test_kohyas_names_after_the_conversion_that_the_error_names(tmp_path: Path) -> None:
    """kohya's alphas are those of the file, r; the scale is 1."""
    convert, pairs = StableDiffusionLoraLoaderMixin.lora_state_dict, tmp_path / "c.safetensors"
    file = without_alphas(tmp_path)
    weights, alphas, _ = convert(str(kohya(tmp_path)), return_lora_metadata=True)
    save_file(weights | {k: torch.tensor(float(a)) for k, a in alphas.items()}, pairs)
    base = toy().state_dict()
    wanted = fuse(base, [LoraFile(file, alpha="rank")]).tensors
    got = fuse(base, [LoraFile(pairs)]).tensors
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())


def test_dora_after_the_merge_that_the_error_names(tmp_path: Path) -> None:
    save_bundle(toy(), tmp_path / "toy")
    path = peft_folder(tmp_path / "dora", toy().unet, use_dora=True)
    model = load_bundle(tmp_path / "toy")
    x, prompt = torch.randn(1, 4, 16, 16), model.prompt
    beside = PeftModel.from_pretrained(load_bundle(tmp_path / "toy").unet, path)
    wanted = beside(x, 399, prompt).sample
    model.unet = PeftModel.from_pretrained(model.unet, path).merge_and_unload()
    save_bundle(model, tmp_path / "merged")
    got = load_bundle(tmp_path / "merged").unet(x, 399, prompt).sample
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
