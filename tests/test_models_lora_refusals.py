"""Every way to get a LoRA wrong has its own error, which names the keys and what mends it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.fuse import fuse
from fr_deploy.models.lora import LoraFile
from lora_cases import (
    diffusers_file,
    edit_config,
    edit_tensors,
    kohya,
    peft_folder,
    toy,
    without_alphas,
)

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV_IN = "base_model.model.conv_in.lora_A.weight"


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """What a bundle holds: no time MLP."""
    return {k: v for k, v in toy().state_dict().items() if "time_embedding" not in k}


def refused(tensors: dict[str, Tensor], path: Path, **said: object) -> str:
    """The error of a LoRA that must not be fused; it names the file."""
    with pytest.raises(ModelError) as caught:
        fuse(tensors, [LoraFile(path, **said)])
    text = str(caught.value)
    assert str(path) in text
    return text


def peft(folder: Path, **config: object) -> Path:
    return peft_folder(folder, toy().unet, **config)


def with_alphas(folder: Path, *layers: str, alpha: float = 4.0) -> Path:
    """diffusers' metadata, and `.alpha` tensors beside it."""
    return beside(folder, **{f"unet.{layer}.alpha": torch.tensor(alpha) for layer in layers})


def beside(folder: Path, **added: Tensor) -> Path:
    """diffusers' file with more tensors, its metadata kept."""
    file = diffusers_file(folder, toy().unet)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file) | added, file, metadata)
    return file


def text_encoder(folder: Path) -> Path:
    layer = "text_encoder.layers.0.q_proj"
    pair = {f"{layer}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    return beside(folder, **pair, **{f"{layer}.alpha": torch.tensor(4.0)})


def renamed(folder: Path, **names: str) -> Path:
    """A PEFT folder with parts of its tensors' names replaced."""
    path = peft(folder)
    file = path / "adapter_model.safetensors"
    made = {}
    for key, tensor in load_file(file).items():
        for old, new in names.items():
            key = key.replace(old, new)
        made[key] = tensor
    save_file(made, file)
    return path


def pickled(folder: Path) -> Path:
    torch.save({}, folder / "lora.pt")
    return folder / "lora.pt"


def truncated(folder: Path) -> Path:
    file = without_alphas(folder)
    file.write_bytes(file.read_bytes()[:-100])
    return file


def first(path: Path, change: Callable[[Tensor], Tensor], key: str = CONV_IN) -> Path:
    tensor = load_file(path / "adapter_model.safetensors")[key]
    return edit_tensors(path, **{key: change(tensor).contiguous()})


def time_embedding(folder: Path) -> Path:
    return peft(folder, target_modules=["linear_1", "conv1"])


def zeros(path: Path) -> Path:
    file = path / "adapter_model.safetensors"
    kept = load_file(file)
    save_file({k: v * 0 if "lora_B" in k else v for k, v in kept.items()}, file)
    return path


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda f: f / "no", r"no LoRA .*adapter_config\.json.*hf download"),
    "an empty folder": (lambda f: f, r"holds nothing; allowed are a folder with"),
    "a pickle": (pickled, r"is a pickle.*weights_only=True"),
    "cut off": (truncated, r"damaged or not safetensors.*fetch or save it again"),
    "damaged configuration": (
        lambda f: (peft(f) / "adapter_config.json").write_text("{") and f,
        r"adapter_config\.json is damaged",
    ),
    "kohya's names": (kohya, r"lora_unet_.*kohya's names; convert them with diffusers: .*save_file"),
    "DoRA": (lambda f: peft(f, use_dora=True), r"use_dora = True: no plain LoRA.*merge_and_unload"),
    "DoRA's tensors": (
        lambda f: edit_config(peft(f, use_dora=True), use_dora=False),
        r"25 \(base_model.*lora_magnitude_vector.* DoRA, which is no plain LoRA.*merge_and_unload",
    ),
    "LoKr": (
        lambda f: renamed(f, **{"lora_A.weight": "lokr_w1", "lora_B.weight": "lokr_w2"}),
        r"50 \(.*lokr_w1.*LyCORIS.*merge_and_unload",
    ),
    "an adapter's name": (
        lambda f: renamed(f, lora_A="lora_A.default"),
        r"25 \(.*lora_A\.default\.weight.*save_pretrained",
    ),
    "an embedding": (
        lambda f: renamed(f, **{"conv_in.lora_A.weight": "conv_in.lora_embedding_A"}),
        r"1 \(base_model\.model\.conv_in\.lora_embedding_A\).*linear layers and convolutions",
    ),
    "whole weights": (
        lambda f: edit_tensors(peft(f), **{"base_model.model.conv_in.bias": torch.ones(16)}),
        r"1 \(base_model\.model\.conv_in\.bias\).*whole weights.*modules_to_save",
    ),
    "trained biases": (lambda f: peft(f, bias="all"), r"bias = 'all': no plain LoRA"),
    "another method": (lambda f: edit_config(peft(f), peft_type="LOHA"), r"peft_type is LOHA"),
    "PiSSA": (
        lambda f: edit_config(peft(f), init_lora_weights="pissa"),
        r"'pissa', which changed the base weights.*path_initial_model_for_weight_conversion",
    ),
    "transposed layers": (
        lambda f: edit_config(peft(f), fan_in_fan_out=True),
        r'fan_in_fan_out is true.*write "fan_in_fan_out": false',
    ),
    "no alpha in the configuration": (
        lambda f: edit_config(peft(f), lora_alpha=None),
        r"lora_alpha is None; allowed is a number above 0 \(peft would put 8",
    ),
    "no rank in the configuration": (lambda f: edit_config(peft(f), r=None), r"r is None; allowed"),
    "alpha 0": (lambda f: edit_config(peft(f), lora_alpha=0), r"lora_alpha is 0; allowed"),
    "another rank": (
        lambda f: edit_config(peft(f), r=8),
        r"conv_in has rank 4, its configuration says 8; they belong to different LoRAs",
    ),
    "two alphas by pattern": (
        lambda f: edit_config(peft(f), alpha_pattern={"conv1": 2, ".*resnets.0.conv1": 3}),
        r"conv1 the alphas \[2, 3\].*one pattern a layer",
    ),
    "a pattern that is none": (
        lambda f: edit_config(peft(f), rank_pattern={"conv1(": 2}),
        r"rank_pattern holds a pattern that is none",
    ),
    "no alpha at all": (
        without_alphas,
        r"no alpha for 25 \(unet\.conv_in.*--lora .*:1:alpha=rank for alpha = r \(here 4\)",
    ),
    "two alphas": (
        lambda f: with_alphas(f, "conv_in"),
        r"alpha of unet\.conv_in is said more than once: configuration 8, \.alpha 4",
    ),
    "an alpha of no layer": (
        lambda f: with_alphas(f, "conv_nowhere"),
        r"alphas of layers without a LoRA: 1 \(unet\.conv_nowhere\)",
    ),
    "an alpha that is no number": (
        lambda f: with_alphas(f, "conv_in", alpha=float("nan")),
        r"conv_in\.alpha is nan; allowed is a number above 0",
    ),
    "half a pair": (
        lambda f: edit_tensors(peft(f), "conv_in.lora_B"),
        r"lora_A or lora_B is missing of 1 \(conv_in\)",
    ),
    "the same layer twice": (
        lambda f: edit_tensors(peft(f), **{"conv_in.lora.down.weight": torch.ones(4, 4, 3, 3)}),
        r"there twice, under an older name",
    ),
    "ranks that differ in a pair": (
        lambda f: first(peft(f), lambda a: a[:3]),
        r"do not share a rank in 1 \(conv_in: A \[3, 4, 3, 3\], B \[16, 4, 1, 1\]\)",
    ),
    "flattened": (lambda f: first(peft(f), torch.flatten), r"do not share a rank.*all shards"),
    "NaN": (
        lambda f: first(peft(f), lambda a: a.fill_(torch.nan)),
        r"NaN, infinity or no floating point numbers in 1 \(conv_in\.lora_A\.weight\)",
    ),
    "integers": (lambda f: first(peft(f), lambda a: a.to(torch.int8)), r"no floating point numbers in 1"),
    "never trained": (lambda f: zeros(peft(f)), r"every lora_B is zero"),
    "a text encoder": (
        text_encoder,
        r"of 26 layers 1 \(text_encoder.*the text encoder: a bundle holds its output.*import-sd",
    ),
    "the time MLP": (
        time_embedding,
        r"1 \(unet\.time_embedding\.linear_1\) are the time MLP: a bundle holds its output.*import-sd",
    ),
    "layers that do not exist": (
        lambda f: renamed(f, down_blocks="input_blocks"),
        r"of 25 layers \d+ \(unet\.input_blocks.*trained for another one.*--model",
    ),
    "another width": (
        lambda f: first(peft(f), lambda a: a.repeat(1, 2, 1, 1)),
        r"1 \(unet\.conv_in: LoRA \[16, 8, 3, 3\], model \[16, 4, 3, 3\]\).*--model",
    ),
    "a linear LoRA for a convolution": (
        lambda f: edit_tensors(
            peft(f, target_modules=["conv_in"]),
            **{CONV_IN: torch.ones(4, 36), CONV_IN.replace("A.", "B."): torch.ones(16, 4)},
        ),
        r"conv_in: LoRA \[16, 36\], model \[16, 4, 3, 3\]",
    ),
    "a bias beside a layer without one": (
        lambda f: edit_tensors(
            peft(f, target_modules=["to_q"]),
            **{f"base_model.model.{MIDDLE}.lora_B.bias": torch.ones(32)},
        ),
        r"lora_B\.bias beside layers that have no bias: 1 \(unet\.mid_block.*lora_bias=False",
    ),
    "promised layers that are missing": (
        lambda f: edit_tensors(peft(f), "conv_shortcut"),
        r"its configuration targets \d+ \(.*conv_shortcut.*\) layers of the model that the file has no tensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_lora_is_refused(what: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    make, wanted = WRONG[what]
    path = make(tmp_path)
    assert re.search(wanted, refused(tensors, path), re.DOTALL), refused(tensors, path)


def test_an_alpha_said_beside_the_files_own_is_refused(tensors: dict, tmp_path: Path) -> None:
    text = refused(tensors, peft(tmp_path), alpha="rank")
    assert "said more than once: configuration 8, alpha= of the command 4" in text


def test_what_a_scale_overflows_is_refused(tensors: dict, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"conv.*NaN or infinity.*choose a smaller scale"):
        fuse(tensors, [LoraFile(peft(tmp_path), 1e39)])


def test_a_broken_model_is_not_blamed_on_the_lora(tensors: dict, tmp_path: Path) -> None:
    broken = tensors | {"unet.conv_in.weight": torch.full((16, 4, 3, 3), torch.nan)}
    with pytest.raises(ModelError, match=r"NaN or infinity in unet\.conv_in\.weight of the model"):
        fuse(broken, [LoraFile(peft(tmp_path))])


def test_one_file_twice_and_none_at_all_are_refused(tensors: dict, tmp_path: Path) -> None:
    path = peft(tmp_path / "lora")
    twice = [LoraFile(path), LoraFile(tmp_path / "." / "lora" / ".." / "lora", 0.5)]
    with pytest.raises(UsageError, match=r"given twice.*sum of the scales"):
        fuse(tensors, twice)
    with pytest.raises(UsageError, match="no LoRA"):
        fuse(tensors, [])
