"""LoRAs for tests: trained by nobody, written by peft and diffusers themselves."""

import json
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS

CONVOLUTIONS = ["conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out"]
"""LAFR's conv-LoRA: the names of all convolutions of the UNet."""
LINEARS = ["to_q", "to_k", "to_v", "to_out.0"]


def toy(dtype: torch.dtype = torch.float32) -> LafrModel:
    torch.manual_seed(0)
    return LafrModel(PRESETS["lafr-toy"]).to(dtype).eval().requires_grad_(False)


def _config(**config: object) -> LoraConfig:
    torch.manual_seed(1)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": CONVOLUTIONS, "init_lora_weights": False}
    return LoraConfig(**(wanted | config))


def adapted(module: nn.Module, **config: object) -> PeftModel:
    """`module` with a LoRA beside its layers, A and B random; convolutions with r = 4 unless said otherwise."""
    return get_peft_model(module, _config(**config)).eval().requires_grad_(False)


def peft_folder(folder: Path, module: nn.Module, **config: object) -> Path:
    """As peft saves it; `module` has the LoRA beside its layers afterwards."""
    adapted(module, **config).save_pretrained(folder)
    return folder


def diffusers_file(
    folder: Path, unet: nn.Module, *, metadata: bool = True, **config: object
) -> Path:
    """As diffusers' pipeline saves it, with or without the metadata that holds the alphas."""
    unet.add_adapter(_config(**config))
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet, adapter_name="default"),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict() if metadata else None,
    )
    return folder / "pytorch_lora_weights.safetensors"


def edit_config(folder: Path, **changes: object) -> Path:
    """Change a PEFT folder's fields; None takes one out."""
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return folder


def edit_tensors(path: Path, *without: str, **renamed: Tensor) -> Path:
    """Change a LoRA's tensors: leave out names that contain one of `without`, add others."""
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    kept = {k: v for k, v in load_file(file).items() if not any(part in k for part in without)}
    save_file(kept | renamed, file)
    return path


def without_alphas(folder: Path) -> Path:
    """diffusers' file as older versions wrote it."""
    return diffusers_file(folder, toy().unet, metadata=False)


def kohya(folder: Path) -> Path:
    """The same LoRA under kohya's names, with kohya's alphas: r."""
    state = load_file(without_alphas(folder))
    made = convert_state_dict_to_kohya(state)
    save_file({k: v.contiguous() for k, v in made.items()}, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"
