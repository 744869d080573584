"""The one inference module: uint8 faces in, uint8 faces out, every constant of one-step restoration folded in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.errors import ModelError
from fr_deploy.models.attend import Kind
from fr_deploy.models.attention import picture_of, use_attention
from fr_deploy.models.autoencoder import Decoder, Encoder
from fr_deploy.models.fold import (
    fold_codebook,
    fold_one_step,
    fold_share,
)
from fr_deploy.models.layers import (
    Conv,
    Layer,
    ResBlock,
    Stack,
    Stream,
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

ADAPTER_EPS = 1e-5


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
        return self.align(z, self.choose(z))

    def choose(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> the codes nearest to it, by number: int32 [B, h w]."""
        f = self.feature(run_blocks(self.encode, self.conv_in(z)).settled()).settled()
        index = nearest_code(f.permute(0, 2, 3, 1).flatten(0, 2), self.codebook).indices
        return index.view(z.shape[0], -1)

    def align(self, z: Tensor, codes: Tensor) -> Tensor:
        """[B, C, h, w] and codes, integers [B, h w] -> the aligned latent, of z's shape."""
        rows = F.embedding(codes, self.table)
        y = run_blocks(self.map, Stream(picture_of(rows, z))).settled()
        out = self.conv_out(y).settled()
        return out if self.share == 1 else out + z * (1 - self.share)


class Stages(NamedTuple):
    """What one restoration computes, in order. Latents are [B, C, h, w] in the weights' dtype."""

    latent: Tensor
    codes: Tensor
    """Integers [B, h w]: the codebook's rows."""
    aligned: Tensor
    denoised: Tensor
    picture: Tensor
    """[B, 3, S, S] in 0..255 and a little beyond."""


class RestorationGraph(nn.Module):
    """LAFR's inference: encode, align, one UNet call, decode; no diffusers, no division, no upsampling.

    Weights are whatever torch initialises until `fold` or `load_state_dict` fills them.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.preset = preset
        self.most = most_at_once(preset)
        """Faces at once in the autoencoder; larger batches pass through it in parts."""
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

    def use_attention(self, kind: Kind, wide: Kind | None = None) -> "RestorationGraph":
        """Who computes attention; `wide` for heads of more than 256 channels, by default the same."""
        use_attention(self, kind, wide or kind)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] RGB, B at least 1 -> the same."""
        return self.to_bytes(self.picture(faces))

    def to_bytes(self, picture: Tensor) -> Tensor:
        """Rounded and clamped: [B, 3, S, S] -> uint8 [B, S, S, 3]."""
        made = picture.round().clamp(0, 255).permute(0, 2, 3, 1)
        # Bytes last: TensorRT takes them at a graph's ends alone, from and into a cast.
        return made.to(torch.uint8).contiguous()

    def picture(self, faces: Tensor) -> Tensor:
        """`forward` before rounding: [B, 3, S, S] in 0..255 and a little beyond."""
        return self.stages(faces).picture

    def stages(self, faces: Tensor, codes: Tensor | None = None) -> Stages:
        """`picture`, and all it is made of.

        Args:
            faces: as `forward`.
            codes: as `decoded`.
        """
        return self.decoded(in_parts(self.encoder, faces, self.most), codes)

    def decoded(self, latent: Tensor, codes: Tensor | None = None) -> Stages:
        """`stages`, of what the encoder gave.

        Args:
            latent: [B, C, h, w] in the weights' dtype.
            codes: integers [B, h w] to take in place of the nearest: one code flipped by rounding shows in the picture,
                and would hide what else two ways of computing differ in.
        """
        codes = self.adapter.choose(latent) if codes is None else codes
        aligned = self.adapter.align(latent, codes)
        denoised = self.unet(aligned)
        return Stages(latent, codes, aligned, denoised, in_parts(self.decoder, denoised, self.most))


def in_parts(part: nn.Module, batch: Tensor, most: int) -> Tensor:
    """`part` of a batch, of at most `most` at once."""
    if batch.shape[0] <= most:
        return part(batch)
    return torch.cat([part(few) for few in batch.split(most)])


def most_at_once(preset: Preset) -> int:
    """Faces whose widest picture in the autoencoder has fewer than 2^31 values, as a power of two.

    Kernels of cuDNN and torch index with 32 bits: 32 faces of Stable Diffusion's decoder have 2^31 values exactly.
    """
    side, widths = preset.size // preset.patch, preset.vae_channels
    # A level's first picture comes from the level below it, upsampled: [side, side, next width].
    widest = side**2 * max(widths[0], widths[1] if len(widths) > 1 else 0)
    return 1 << ((2**31 - 1) // widest).bit_length() - 1
