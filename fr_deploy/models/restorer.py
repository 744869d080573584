"""The one inference module: uint8 faces in, uint8 faces out, every constant of one-step restoration folded in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.errors import ModelError
from fr_deploy.models.attention import SingleHeadAttention, picture_of
from fr_deploy.models.fold import (
    fold_codebook,
    fold_one_step,
    fold_pixels_in,
    fold_pixels_out,
    fold_quant,
    fold_share,
)
from fr_deploy.models.layers import (
    Conv,
    Layer,
    Norm,
    ResBlock,
    Stack,
    Stream,
    Upsample,
    run_blocks,
    store,
    use_kernels,
)
from fr_deploy.models.one_step import one_step
from fr_deploy.models.presets import Preset
from fr_deploy.models.unet import UNet
from fr_deploy.models.weights import Weights
from fr_kernels import nearest_code

if TYPE_CHECKING:
    from fr_deploy.models.lafr import LafrModel

VAE_EPS = 1e-6
ADAPTER_EPS = 1e-5


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


class Adapter(Layer):
    """LAFR's codebook adapter; the 1x1 convolution behind the codebook is a table with one row a code."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        hidden, groups = preset.adapter_hidden, preset.groups
        self.share = preset.adapter_share

        def blocks() -> Stack[ResBlock]:
            made = (
                ResBlock(hidden, hidden, groups, ADAPTER_EPS) for _ in range(preset.adapter_blocks)
            )
            return Stack[ResBlock](made)

        self.conv_in = Conv(preset.latent_channels, hidden)
        self.encode = blocks()
        self.feature = Conv(hidden, preset.code_dim, 1, padding=0)
        self.codebook = nn.Parameter(torch.empty(preset.codes, preset.code_dim))
        self.table = nn.Parameter(torch.empty(preset.codes, hidden))
        self.map = blocks()
        self.conv_out = Conv(hidden, preset.latent_channels)

    def fold(self, w: Weights) -> None:
        """From a `CodebookAdapter`."""
        store(self.conv_in, w.affine("encode.0"))
        for i, (encoding, mapping) in enumerate(zip(self.encode, self.map, strict=True), start=1):
            encoding.fold(w / "encode" / i)
            mapping.fold(w / "map" / i)
        last = len(self.encode) + 1
        store(self.feature, w.affine(f"encode.{last}"))
        store(self.conv_out, fold_share(w.affine(f"map.{last}"), self.share))
        codebook = w["codebook.weight"]
        with torch.no_grad():
            self.codebook.copy_(codebook)
            self.table.copy_(fold_codebook(codebook, w.affine("map.0")))

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> the aligned latent, the same shape."""
        f = self.feature(run_blocks(self.encode, self.conv_in(z)).settled()).settled()
        index = nearest_code(f.permute(0, 2, 3, 1).flatten(0, 2), self.codebook).indices
        rows = F.embedding(index.view(z.shape[0], -1), self.table)
        y = run_blocks(self.map, Stream(picture_of(rows, z))).settled()
        out = self.conv_out(y).settled()
        return out if self.share == 1 else out + z * (1 - self.share)


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


class RestorationGraph(nn.Module):
    """LAFR's inference: encode, align, one UNet call, decode; no diffusers, no division, no upsampling.

    Weights are whatever torch initialises until `fold` or `load_state_dict` fills them.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.encoder, self.adapter = Encoder(preset), Adapter(preset)
        self.unet, self.decoder = UNet(preset), Decoder(preset)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    @staticmethod
    def of(model: "LafrModel") -> "RestorationGraph":
        """The folded form of a model, in float32 on the CPU."""
        graph = RestorationGraph(model.preset)
        return graph.fold(model.state_dict(), model.time_embedding(), model.scaling)

    def fold(
        self, tensors: Mapping[str, Tensor], time: Tensor, scaling: float
    ) -> "RestorationGraph":
        """Fill from a `LafrModel`'s weights; computed in float64, rounded once.

        Args:
            tensors: by the names of `LafrModel.state_dict()`.
            time: [1, T], the time MLP's output at the one step.
            scaling: the VAE's scaling factor.

        Raises:
            ModelError: a weight is missing, not finite, of another shape, or belongs to no layer.
        """
        w = Weights(tensors)
        try:
            self._fold(w, time[0].double(), scaling)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{w.read[-1]} or what is folded with it has another shape than preset "
                f"{self.preset.name!r} asks for: {error}"
            ) from error
        left = {k for k in tensors if not k.startswith("unet.time_embedding.")} - set(w.read)
        if left:
            raise ModelError(f"{len(left)} tensors belong to no layer: {sorted(left)[:6]}")
        return self

    def _fold(self, w: Weights, time: Tensor, scaling: float) -> None:
        vae, unet, step = w / "vae", w / "unet", one_step(self.preset.timestep)
        self.encoder.fold(vae, scaling)
        self.adapter.fold(w / "adapter")
        out, post = unet.affine("conv_out"), vae.affine("post_quant_conv")
        conv_out, residual = fold_one_step(out, post, step.alpha, step.sigma, scaling)
        self.unet.fold(unet, w["prompt"][0], time, conv_out, residual)
        self.decoder.fold(vae / "decoder")

    def use_kernels(self, kernels: bool) -> "RestorationGraph":
        """fr_kernels ops (their compiled forms on a GPU), or torch's own."""
        use_kernels(self, kernels)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] RGB, B at least 1 -> the same."""
        return self.to_bytes(self.picture(faces))

    def to_bytes(self, picture: Tensor) -> Tensor:
        """Rounded and clamped: [B, 3, S, S] -> uint8 [B, S, S, 3]."""
        made = picture.round().clamp(0, 255)
        return made.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def picture(self, faces: Tensor) -> Tensor:
        """`forward` before rounding: [B, 3, S, S] in 0..255 and a little beyond."""
        return self.decoder(self.unet(self.adapter(self.encoder(faces))))
