"""The autoencoder of the restoration graph: bytes to latent, latent to picture."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.attention import SingleHeadAttention
from fr_deploy.models.fold import (
    fold_pixels_in,
    fold_pixels_out,
    fold_quant,
)
from fr_deploy.models.layers import (
    Conv,
    Layer,
    Norm,
    ResBlock,
    Stack,
    Upsample,
    run_blocks,
    store,
)
from fr_deploy.models.presets import Preset
from fr_deploy.models.weights import Weights

VAE_EPS = 1e-6


def _middle(channels: int, preset: Preset) -> Stack[Any]:
    blocks: list[nn.Module] = [ResBlock(channels, channels, preset.groups, VAE_EPS)]
    if preset.vae_attention:
        blocks.append(SingleHeadAttention(channels, preset.groups))
    return Stack[Any]([*blocks, ResBlock(channels, channels, preset.groups, VAE_EPS)])


def _fold_middle(blocks: Stack[Any], w: Weights) -> None:
    blocks[0].fold(w / "resnets.0")
    blocks[-1].fold(w / "resnets.1")
    if len(blocks) == 3:
        blocks[1].fold(w / "attentions.0")


class Encoder(Layer):
    """The VAE's encoder: bytes -> the scaled mode of the posterior [B, C, h, w]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        widths, groups = preset.vae_channels, preset.groups
        self.patch = preset.patch
        self.conv_in = Conv(3 * preset.patch**2, widths[0], padding=0)
        self.levels, self.downs = Stack[Stack[ResBlock]](), Stack[Conv]()
        before = widths[0]
        for level, width in enumerate(widths):
            inputs = [before] + [width] * (preset.vae_layers - 1)
            self.levels.append(Stack[ResBlock](ResBlock(i, width, groups, VAE_EPS) for i in inputs))
            if level + 1 < len(widths):
                self.downs.append(Conv(width, width, stride=2, padding=0))
            before = width
        self.middle = _middle(before, preset)
        self.norm = Norm(before, groups, VAE_EPS)
        self.conv_out = Conv(before, preset.latent_channels)

    def fold(self, w: Weights, scaling: float) -> None:
        """From a diffusers `AutoencoderKL`."""
        encoder = w / "encoder"
        store(self.conv_in, fold_pixels_in(encoder.affine("conv_in")))
        for i, blocks in enumerate(self.levels):
            for j, block in enumerate(blocks):
                block.fold(encoder / "down_blocks" / i / "resnets" / j)
        for i, down in enumerate(self.downs):
            store(down, (encoder / "down_blocks" / i).affine("downsamplers.0.conv"))
        _fold_middle(self.middle, encoder / "mid_block")
        self.norm.fold(encoder, "conv_norm_out")
        quant = fold_quant(encoder.affine("conv_out"), w.affine("quant_conv"), scaling)
        store(self.conv_out, quant)

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 (or any dtype, 0..255) [B, H, W, 3] -> [B, C, h, w] in the weights' dtype."""
        stream = self.conv_in(self._padded(faces))
        for i, blocks in enumerate(self.levels):
            stream = run_blocks(blocks, stream)
            if i < len(self.downs):
                stream = self.downs[i](stream.padded())
        y, _ = self.norm(run_blocks(self.middle, stream))
        return self.conv_out(y).settled()

    def _padded(self, faces: Tensor) -> Tensor:
        """Channels folded, one ring of the grey that -1..1 calls 0 around."""
        ring, (batch, height, width, _) = self.patch, faces.shape
        shape = (batch, height + 2 * ring, width + 2 * ring, 3)
        weight = self.conv_in.weight
        padded = torch.full(shape, 127.5, dtype=weight.dtype, device=weight.device)
        padded[:, ring:-ring, ring:-ring] = faces
        return (
            F.pixel_unshuffle(padded.permute(0, 3, 1, 2), ring)
            if ring > 1
            else padded.permute(0, 3, 1, 2)
        )


class Decoder(Layer):
    """The VAE's decoder: [B, C, h, w] -> picture in 0..255."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        widths, groups = preset.vae_channels[::-1], preset.groups
        self.patch = preset.patch
        self.conv_in = Conv(preset.latent_channels, widths[0])
        self.middle = _middle(widths[0], preset)
        self.levels, self.ups = Stack[Stack[ResBlock]](), Stack[Upsample]()
        before = widths[0]
        for level, width in enumerate(widths):
            inputs = [before] + [width] * preset.vae_layers
            self.levels.append(Stack[ResBlock](ResBlock(i, width, groups, VAE_EPS) for i in inputs))
            if level + 1 < len(widths):
                self.ups.append(Upsample(width, width))
            before = width
        self.norm = Norm(before, groups, VAE_EPS)
        self.conv_out = Conv(before, 3 * preset.patch**2)

    def fold(self, w: Weights) -> None:
        """From a diffusers `AutoencoderKL`'s decoder."""
        store(self.conv_in, w.affine("conv_in"))
        _fold_middle(self.middle, w / "mid_block")
        for i, blocks in enumerate(self.levels):
            for j, block in enumerate(blocks):
                block.fold(w / "up_blocks" / i / "resnets" / j)
        for i, up in enumerate(self.ups):
            up.fold(w / "up_blocks" / i / "upsamplers.0")
        self.norm.fold(w, "conv_norm_out")
        store(self.conv_out, fold_pixels_out(w.affine("conv_out")))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W], not rounded, not clamped."""
        stream = run_blocks(self.middle, self.conv_in(x))
        for i, blocks in enumerate(self.levels):
            stream = run_blocks(blocks, stream)
            if i < len(self.ups):
                stream = self.ups[i](stream.settled())
        y, _ = self.norm(stream)
        made = self.conv_out(y).settled()
        return F.pixel_shuffle(made, self.patch) if self.patch > 1 else made
