"""The technique to beat: the bundle's modules called one after the other, as the diffusers docs show."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fr_deploy.models.lafr import LafrModel
from fr_kernels import conv3x3, conv3x3_on_cpu, group_norm_silu, pack_conv3x3


class PlainDiffusers:
    """Eager, NCHW, no fold and none of fr-deploy's own run-time code but the adapter's definition."""

    def __init__(self, model: LafrModel, *, compiled: bool = False) -> None:
        """Take the modules of a model that nothing else holds.

        Args:
            model: on its device and in its dtype; its memory layout is kept.
            compiled: the three networks through torch.compile, on a GPU with max-autotune and CUDA graphs.
        """
        self.vae, self.adapter, self.unet = model.vae, model.adapter, model.unet
        self.prompt, self.timestep = model.prompt, model.step.timestep
        self.patch, self.scaling = model.preset.patch, model.scaling
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        )
        self.encode: Any = lambda x: self.vae.encode(x).latent_dist.mode()
        self.predict: Any = lambda z: (
            self.unet(
                z, self.timestep, encoder_hidden_states=self.prompt.expand(len(z), -1, -1)
            ).sample
        )
        self.decode: Any = lambda z: self.vae.decode(z).sample
        if compiled:
            mode = "max-autotune" if self.prompt.is_cuda else "default"
            self.encode, self.predict, self.decode, self.adapter = (
                torch.compile(part, mode=mode, dynamic=False)
                for part in (self.encode, self.predict, self.decode, self.adapter)
            )

    @torch.no_grad()
    def __call__(self, faces: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] on the CPU -> the same."""
        like = self.prompt
        # `contiguous`: without it the permuted array is NHWC in memory, and the convolutions follow it.
        pixels = faces.to(like.device).permute(0, 3, 1, 2).contiguous()
        image = pixels.to(like.dtype) / 127.5 - 1
        latent = self.adapter(self.encode(F.pixel_unshuffle(image, self.patch)) * self.scaling)
        noise = self.predict(latent)
        kept = self.scheduler.alphas_cumprod[self.timestep].to(like.device)
        # In float32, as LAFR's code does: in float16 the two terms would cancel 15 times their sum.
        clean = (latent.float() - (1 - kept).sqrt() * noise.float()) / kept.sqrt()
        image = F.pixel_shuffle(self.decode((clean / self.scaling).to(like.dtype)), self.patch)
        pixels = (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (pixels * 255).round().to(torch.uint8).cpu()


def on_kernels(model: LafrModel) -> LafrModel:
    """The unfolded model with fr_kernels ops in place of its own, one for one, as the folded graph has them on a CPU.

    Args:
        model: float32 on the CPU, in channels_last; it is changed.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                setattr(module, name, _Conv(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(module, name, _Norm(child))
    return model


class _Conv(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        fits = conv.stride == (1, 1) and conv.padding == (1, 1)
        self.packed = pack_conv3x3(conv.weight) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if self.packed is None or not conv3x3_on_cpu(x, conv.weight, 1):
            return conv(x)
        return conv3x3(x, conv.weight, conv.bias, packed=self.packed)


class _Norm(nn.Module):
    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if x.ndim != 4:  # the attention of a VAE norms [B, C, N]
            return norm(x)
        return group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, "none", eps=norm.eps).y
