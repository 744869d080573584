"""LAFR's latent codebook alignment adapter (LAFR, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.presets import Preset
from fr_kernels import nearest_code, soft_lookup


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3, same width."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class CodebookAdapter(nn.Module):
    """Moves the latent of a degraded face to where the UNet expects the latent of a clean one.

    A shallow network maps the latent to one feature per position, the nearest of `codes` code vectors
    replaces it, and a small mapping network M turns it into z_aligned = M(c*) (LAFR, eq 2-4). With a
    `share` s below 1, z_aligned = (1 - s) z + s M(c*) (ours). Layout of 5.14 M parameters at the paper's sizes (the
    paper says 5.2 M and does not give it; ours): conv, 2 blocks, 1x1 | codebook | 1x1, 2 blocks, conv.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        hidden, latent, groups = preset.adapter_hidden, preset.latent_channels, preset.groups
        blocks = range(preset.adapter_blocks)
        self.share = preset.adapter_share
        self.beta = 1.0
        self.encode = nn.Sequential(
            nn.Conv2d(latent, hidden, 3, padding=1),
            *(ResBlock(hidden, groups) for _ in blocks),
            nn.Conv2d(hidden, preset.code_dim, 1),
        )
        self.codebook = nn.Embedding(preset.codes, preset.code_dim)
        self.map = nn.Sequential(
            nn.Conv2d(preset.code_dim, hidden, 1),
            *(ResBlock(hidden, groups) for _ in blocks),
            nn.Conv2d(hidden, latent, 3, padding=1),
        )

    def features(self, z: Tensor) -> Tensor:
        """The queries to the codebook: [B, C, H, W] -> [B * H * W, D]."""
        return self.encode(z).permute(0, 2, 3, 1).flatten(0, 2)

    def forward(self, z: Tensor) -> Tensor:
        """Align a scaled latent [B, C, H, W]; differentiable while gradients are recorded."""
        aligned, _ = self.align(z)
        return aligned

    def align(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and the int32 [B * H * W] indices of the codes used."""
        features = self.features(z)
        if features.requires_grad:
            codes, index = soft_lookup(features, self.codebook.weight, self.beta)
        else:
            codes, index = nearest_code(features, self.codebook.weight)
        return self.from_codes(z, codes), index

    def from_codes(self, z: Tensor, codes: Tensor) -> Tensor:
        """z_aligned [B, C, H, W] from the latent and code vectors [B * H * W, D]."""
        grid = codes.unflatten(0, (z.shape[0], z.shape[2], z.shape[3])).permute(0, 3, 1, 2)
        mapped = self.map(grid)
        return mapped if self.share == 1 else torch.lerp(z, mapped, self.share)
