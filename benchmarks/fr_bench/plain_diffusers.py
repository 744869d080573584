"""The technique to beat: the bundle's modules called one after the other, as the diffusers docs show."""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from fr_deploy.models.lafr import LafrModel


class PlainDiffusers:
    """Eager, float32, NCHW; none of fr-deploy's own run-time code but the adapter's definition."""

    def __init__(self, model: LafrModel) -> None:
        """Take the modules of a model that no `Restorer` holds (a `Restorer` changes their memory layout)."""
        self.vae, self.adapter, self.unet = model.vae, model.adapter, model.unet
        self.prompt, self.timestep = model.prompt, model.step.timestep
        self.patch, self.scaling = model.preset.patch, model.scaling
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        )

    @torch.no_grad()
    def __call__(self, face: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [S, S, 3] -> the same."""
        pixels = face.astype(np.float32) / 127.5 - 1
        # `contiguous`: without it the permuted array is NHWC in memory, and the convolutions follow it.
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
        posterior = self.vae.encode(F.pixel_unshuffle(image, self.patch)).latent_dist
        latent = self.adapter(posterior.mode() * self.scaling)
        noise = self.unet(latent, self.timestep, encoder_hidden_states=self.prompt).sample
        kept = self.scheduler.alphas_cumprod[self.timestep]
        latent = (latent - (1 - kept).sqrt() * noise) / kept.sqrt()
        image = F.pixel_shuffle(self.vae.decode(latent / self.scaling).sample, self.patch)
        pixels = (image / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        return (pixels * 255).round().astype(np.uint8)
