"""LAFR: VAE encode -> codebook adapter -> pruned one-step UNet -> VAE decode."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from fr_deploy.models.adapter import CodebookAdapter
from fr_deploy.models.one_step import one_step
from fr_deploy.models.presets import Preset


def build_vae(preset: Preset) -> Any:
    """diffusers' VAE at the preset's widths, randomly initialised."""
    levels = len(preset.vae_channels)
    config = {
        "in_channels": 3 * preset.patch**2,
        "out_channels": 3 * preset.patch**2,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": preset.vae_channels,
        "layers_per_block": preset.vae_layers,
        "latent_channels": preset.latent_channels,
        "norm_num_groups": preset.groups,
        "sample_size": preset.size // preset.patch,
        "mid_block_add_attention": preset.vae_attention,
    }
    return AutoencoderKL.from_config(config)


def build_unet(preset: Preset) -> Any:
    """diffusers' UNet at the preset's widths, randomly initialised."""
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in preset.unet_attention]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(preset.unet_attention)]
    # diffusers reads `attention_head_dim` as the number of heads.
    heads = tuple(channels // preset.head_dim for channels in preset.unet_channels)
    config = {
        "sample_size": preset.size // preset.patch // 2 ** (len(preset.vae_channels) - 1),
        "in_channels": preset.latent_channels,
        "out_channels": preset.latent_channels,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": preset.unet_channels,
        "layers_per_block": preset.unet_layers,
        "attention_head_dim": heads,
        "cross_attention_dim": preset.prompt_dim,
        "use_linear_projection": True,
        "norm_num_groups": preset.groups,
    }
    return UNet2DConditionModel.from_config(config)


class StaticTime(nn.Module):
    """Stands in for the UNet's time MLP: the embedding of the one timestep, stored."""

    embedding: Tensor

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding)

    def forward(self, sample: Tensor, _condition: Tensor | None = None) -> Tensor:
        """[B, ...] -> [B, T]: the same row for each."""
        return self.embedding.expand(sample.shape[0], -1)


class LafrModel(nn.Module):
    """The whole restorer in the papers' terms; every backend is compared with this module in fp32.

    `prompt` [1, tokens, dim] is the text encoder's output for the fixed prompt (LAFR, section 3.3), stored,
    so that no text encoder exists here; a preset trained from nothing learns it (ours).
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.vae: Any = build_vae(preset)
        self.adapter = CodebookAdapter(preset)
        self.unet: Any = build_unet(preset)
        self.prompt = nn.Parameter(torch.randn(1, preset.prompt_tokens, preset.prompt_dim))
        self.step = one_step(preset.timestep)
        self.factor = preset.patch * 2 ** (len(preset.vae_channels) - 1)
        """Pixels per latent position along one side."""

    @property
    def scaling(self) -> float:
        """Latents are multiplied by this to unit variance before the UNet (0.18215 in SD 2.1)."""
        return float(self.vae.config["scaling_factor"])

    @torch.no_grad()
    def time_embedding(self) -> Tensor:
        """The UNet's embedding [1, T] of the one timestep."""
        if isinstance(self.unet.time_embedding, StaticTime):
            return self.unet.time_embedding.embedding
        steps = torch.tensor([self.step.timestep], device=self.prompt.device)
        return self.unet.time_embedding(self.unet.time_proj(steps).to(self.prompt.dtype))

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latent of an image.

        Args:
            image: [B, 3, H, W] in [-1, 1]; H and W multiples of `factor`.
            noise: [B, C, h, w] standard normal to sample the latent; None takes its mode.
        """
        posterior = self.vae.encode(F.pixel_unshuffle(image, self.preset.patch)).latent_dist
        z = posterior.mode() if noise is None else posterior.mean + posterior.std * noise
        return z * self.scaling

    def denoise(self, z: Tensor) -> Tensor:
        """One UNet call and the one-step formula, on an aligned latent; float32 out."""
        prompt = self.prompt.expand(z.shape[0], -1, -1)
        eps = self.unet(z, self.step.timestep, prompt, return_dict=False)[0]
        return self.step.x0(z, eps)

    def decode(self, z0: Tensor) -> Tensor:
        """Image [B, 3, H, W], about [-1, 1], of a scaled latent."""
        z0 = (z0 / self.scaling).to(self.prompt.dtype)
        return F.pixel_shuffle(self.vae.decode(z0, return_dict=False)[0], self.preset.patch)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Restore faces: [B, 3, H, W] in [-1, 1] -> the same shape, not clamped."""
        return self.decode(self.denoise(self.adapter(self.encode(image, noise))))
