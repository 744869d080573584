"""The pruned one-step UNet of the restoration graph: no time MLP, no text encoder, x0 in its last convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.attention import Transformer
from fr_deploy.models.fold import Affine
from fr_deploy.models.layers import (
    Conv,
    Island,
    Layer,
    Norm,
    ResBlock,
    Stack,
    Stream,
    TransposedUpsample,
    Upsample,
    store,
)
from fr_deploy.models.presets import Preset
from fr_deploy.models.weights import Weights

UNET_EPS = 1e-5


class Level(Layer):
    """Residual blocks, each with a transformer behind it where `attention`."""

    def __init__(self, widths: list[tuple[int, int]], attention: bool, preset: Preset) -> None:
        super().__init__()
        self.resnets = Stack[ResBlock](ResBlock(i, o, preset.groups, UNET_EPS) for i, o in widths)
        behind = widths if attention else []
        self.attentions = Stack[Transformer](_transformer(o, preset) for _, o in behind)

    def fold(self, w: Weights, prompt: Tensor, time: Tensor) -> None:
        """From a diffusers block."""
        for i, block in enumerate(self.resnets):
            block.fold(w / "resnets" / i, time)
        for i, block in enumerate(self.attentions):
            block.fold(w / "attentions" / i, prompt)

    def step(self, i: int, stream: Stream) -> tuple[Stream, Tensor]:
        """Block i's output, and its settled input."""
        stream, h = self.resnets[i](stream)
        if len(self.attentions):
            stream, _ = self.attentions[i](stream)
        return stream, h


def _transformer(channels: int, preset: Preset) -> Transformer:
    return Transformer(channels, channels // preset.head_dim, preset.prompt_tokens, preset.groups)


class OneStep(Island):
    """The UNet's last convolution, which makes the decoder's input of it and of the aligned latent.

    In float32: at t = 999 both terms are 15 times their sum, and rounding them to float16 first would show.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, inputs, 3, 3))
        self.bias = nn.Parameter(torch.empty(channels))
        self.residual = nn.Parameter(torch.empty(channels, channels, 1, 1))

    def fold(self, conv_out: Affine, residual: Tensor) -> None:
        """As `fold_one_step` returns them."""
        store(self, conv_out)
        with torch.no_grad():
            self.residual.copy_(residual[..., None, None])

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """[B, I, h, w] and [B, C, h, w] -> [B, C, h, w] in z's dtype."""
        wide = self.weight.dtype
        out = F.conv2d(y.to(wide), self.weight, self.bias, padding=1)
        return (out + F.conv2d(z.to(wide), self.residual)).to(z.dtype)


class UNet(Layer):
    """Aligned latent -> the decoder's input, both [B, C, h, w]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        widths, layers = preset.unet_channels, preset.unet_layers
        self.conv_in = Conv(preset.latent_channels, widths[0])
        skips, before = [widths[0]], widths[0]
        self.downs, self.downsamplers = Stack[Level](), Stack[Conv]()
        for i, (width, attention) in enumerate(zip(widths, preset.unet_attention, strict=True)):
            blocks = [(before, width)] + [(width, width)] * (layers - 1)
            self.downs.append(Level(blocks, attention, preset))
            skips += [width] * layers
            if i + 1 < len(widths):
                self.downsamplers.append(Conv(width, width, stride=2))
                skips.append(width)
            before = width
        self.middle = Stack[Level](
            [Level([(before, before)], True, preset), Level([(before, before)], False, preset)]
        )
        self.ups, self.upsamplers = Stack[Level](), Stack[TransposedUpsample | Upsample]()
        for i, (width, attention) in enumerate(
            zip(widths[::-1], preset.unet_attention[::-1], strict=True)
        ):
            inputs = [before] + [width] * layers
            self.ups.append(Level([(n + skips.pop(), width) for n in inputs], attention, preset))
            if i + 1 < len(widths):
                self.upsamplers.append(TransposedUpsample(width, width))
            before = width
        self.norm = Norm(before, preset.groups, UNET_EPS)
        self.one_step = OneStep(before, preset.latent_channels)

    def fold(
        self, w: Weights, prompt: Tensor, time: Tensor, conv_out: Affine, residual: Tensor
    ) -> None:
        """From a diffusers `UNet2DConditionModel`.

        Args:
            w: its weights.
            prompt: [T, D], the encoded prompt.
            time: [E], the time MLP's output.
            conv_out, residual: as `fold_one_step` returns them.
        """
        store(self.conv_in, w.affine("conv_in"))
        for i, level in enumerate(self.downs):
            level.fold(w / "down_blocks" / i, prompt, time)
        for i, down in enumerate(self.downsamplers):
            store(down, (w / "down_blocks" / i).affine("downsamplers.0.conv"))
        first, second = self.middle
        first.fold(w / "mid_block", prompt, time)
        second.resnets[0].fold(w / "mid_block" / "resnets.1", time)
        for i, level in enumerate(self.ups):
            level.fold(w / "up_blocks" / i, prompt, time)
        for i, up in enumerate(self.upsamplers):
            up.fold(w / "up_blocks" / i / "upsamplers.0")
        self.norm.fold(w, "conv_norm_out")
        self.one_step.fold(conv_out, residual)

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape and dtype."""
        stream, skips = self.conv_in(z), list[Tensor]()
        for i, level in enumerate(self.downs):
            for j in range(len(level.resnets)):
                # A block's input is a skip, and its norm has settled it.
                stream, h = level.step(j, stream)
                skips.append(h)
            if i < len(self.downsamplers):
                skips.append(stream.settled())
                stream = self.downsamplers[i](skips[-1])
        stream, h = self.middle[0].step(0, stream)
        skips.append(h)
        stream, _ = self.middle[1].step(0, stream)
        for i, level in enumerate(self.ups):
            for j in range(len(level.resnets)):
                stream, _ = level.step(j, stream._replace(skip=skips.pop()))
            if i < len(self.upsamplers):
                stream = self.upsamplers[i](stream.settled())
        y, _ = self.norm(stream)
        return self.one_step(y, z)
