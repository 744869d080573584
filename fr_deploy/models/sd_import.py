"""From a Stable Diffusion 2.1-base folder (diffusers layout) to a LAFR model with a fresh adapter."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from fr_deploy.errors import ModelError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS, Preset

PROMPT = "face, high quality"  # LAFR, section 3.3


def lafr_from_sd(folder: Path, *, prompt: str = PROMPT, timestep: int = 999) -> LafrModel:
    """Read `vae/`, `unet/`, `text_encoder/`, `tokenizer/`, `scheduler/`; the text encoder is used once and dropped.

    Args:
        folder: diffusers layout, safetensors weights, epsilon prediction (2.1-base; not the 768 px 2.1).
        prompt: what the UNet is told about every image.
        timestep: of the one step; OSEDiff and LAFR use 999.

    Returns:
        float32 model in eval mode; its adapter is randomly initialised.

    Raises:
        ModelError: a part is missing, or the folder is not of this kind.
    """
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ModelError(
                f"{folder} has no {part}/; expected Stable Diffusion 2.1-base in diffusers layout"
            )
    kind = _config(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise ModelError(
            f"{folder} predicts {kind!r}; one-step restoration needs 'epsilon' (2.1-base, not the 768 px 2.1)"
        )
    try:
        vae = AutoencoderKL.from_pretrained(
            folder / "vae", local_files_only=True, use_safetensors=True
        )
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: {error}") from error
    text = encode_prompt(folder, prompt)
    model = LafrModel(_preset(vae.config, unet.config, text, timestep))
    model.vae, model.unet = vae, unet
    with torch.no_grad():
        model.prompt.copy_(text)
    return model.eval()


@torch.no_grad()
def encode_prompt(folder: Path, prompt: str) -> Tensor:
    """The text encoder's last hidden state [1, tokens, dim] float32, padded to the tokenizer's length."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(
        prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return encoder.eval()(tokens.input_ids)[0]


def _preset(vae: Any, unet: Any, text: Tensor, timestep: int) -> Preset:
    """The paper's preset with the folder's widths, so that narrow copies of the architecture import too."""
    base, head_dim = PRESETS["lafr-sd21"], _head_dim(vae, unet)
    return Preset(
        name=base.name,
        size=base.size,
        patch=1,
        latent_channels=vae["latent_channels"],
        vae_channels=tuple(vae["block_out_channels"]),
        vae_layers=vae["layers_per_block"],
        vae_attention=vae.get("mid_block_add_attention", True),
        unet_channels=tuple(unet["block_out_channels"]),
        unet_attention=tuple(kind.startswith("CrossAttn") for kind in unet["down_block_types"]),
        unet_layers=unet["layers_per_block"],
        head_dim=head_dim,
        prompt_tokens=text.shape[1],
        prompt_dim=text.shape[2],
        timestep=timestep,
        adapter_hidden=base.adapter_hidden,
        adapter_blocks=base.adapter_blocks,
        codes=base.codes,
        code_dim=base.code_dim,
        adapter_share=base.adapter_share,
        groups=unet["norm_num_groups"],
    )


def _head_dim(vae: Any, unet: Any) -> int:
    """Width of the attention heads, after checking that a preset can say what the two configurations say."""
    heads = unet["attention_head_dim"]
    heads = [heads] * len(unet["block_out_channels"]) if isinstance(heads, int) else heads
    widths = {
        channels // count for channels, count in zip(unet["block_out_channels"], heads, strict=True)
    }
    if (
        unet["in_channels"] != vae["latent_channels"]
        or unet["out_channels"] != vae["latent_channels"]
    ):
        raise ModelError(
            f"the UNet has {unet['in_channels']} input and {unet['out_channels']} output channels, the VAE "
            f"{vae['latent_channels']} latent channels; they must be equal (is it an inpainting model?)"
        )
    if len(widths) != 1 or unet["norm_num_groups"] != vae["norm_num_groups"]:
        # A bundle is rebuilt from its preset: either would load without an error and compute something else.
        raise ModelError(
            f"attention heads are {sorted(widths)} wide and norm groups {unet['norm_num_groups']} (UNet) and "
            f"{vae['norm_num_groups']} (VAE); expected one width and equal groups, as in 2.1-base (1.x has others)"
        )
    return widths.pop()


def _config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
