"""Layers of the restoration graph. Each holds folded weights and takes them from a model's with `fold`.

With `kernels`, convolutions leave their bias to the next norm, which adds it and the residual as it reads them
(`fr_kernels.group_norm_silu`: cuDNN adds a bias in a launch of its own); on a CPU in float32 those of 3x3 are
`fr_kernels.conv3x3` and `upsample_conv`, which add as they write. Without, the layers are torch's own ops: what every
exporter knows.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.fold import (
    Affine,
    fold_time,
    fold_upsample,
    fold_upsample_transposed,
    phases_of_transposed,
)
from fr_deploy.models.packing import Packed, pack_transposed
from fr_deploy.models.weights import Weights
from fr_kernels import (
    conv3x3,
    conv3x3_on_cpu,
    group_norm_silu,
    pack_conv3x3,
    pack_upsample_conv,
    phase_shuffle,
    settle,
    upsample_conv,
    upsample_conv_on_cpu,
)


class Stream(NamedTuple):
    """A picture [B, C, H, W] whose last additions are still to be made: the next norm makes them as it reads."""

    x: Tensor
    residual: Tensor | None = None
    bias: Tensor | None = None
    """[C]"""
    shuffled: bool = False
    """x is [B, 4C, H/2 + 1, W/2 + 1] and phase_shuffle(x) takes its place."""
    skip: Tensor | None = None
    """[B, C2, H, W], more channels of the picture, behind the others."""

    def settled(self) -> Tensor:
        """The picture itself."""
        if self.skip is not None:
            return torch.cat([self._replace(skip=None).settled(), self.skip], 1)
        if self.bias is not None or self.shuffled:
            return settle(self.x, residual=self.residual, bias=self.bias, shuffled=self.shuffled)
        return self.x if self.residual is None else self.x + self.residual

    def padded(self) -> Tensor:
        """The picture with a row of zeros below and a column at the right: [B, C, H + 1, W + 1]."""
        if self.skip is None and (self.bias is not None or self.shuffled):
            x, residual, bias, shuffled, _ = self
            return settle(x, residual=residual, bias=bias, pad=True, shuffled=shuffled)
        return F.pad(self.settled(), (0, 1, 0, 1))


class Layer(nn.Module):
    """Base: whether fr_kernels ops are used, set for a whole graph by `use_kernels`."""

    kernels: bool = False


M = TypeVar("M", bound=nn.Module)


class Stack(nn.ModuleList, Generic[M]):
    """A `ModuleList` whose modules have a type."""

    def __iter__(self) -> Iterator[M]:
        return iter(super().__iter__())  # pyright: ignore[reportReturnType]

    def __getitem__(self, index: Any) -> M:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__getitem__(index)  # pyright: ignore[reportReturnType]


class Block(Layer):
    """A layer that settles its input: returns its output, and the settled input."""

    def forward(self, stream: Stream) -> tuple[Stream, Tensor]:
        """[B, C, H, W] -> [B, O, H, W]."""
        raise NotImplementedError


def use_kernels(module: nn.Module, kernels: bool) -> None:
    """Choose between fr_kernels ops and torch's own for every layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, Layer):
            layer.kernels = kernels


def store(module: nn.Module, affine: Affine) -> None:
    """Round folded weights, once, into a layer with `weight` and `bias`."""
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    if weight.shape != affine.weight.shape or bias.shape != affine.bias.shape:
        shapes = tuple(affine.weight.shape), tuple(weight.shape)
        raise ValueError(f"weights are {shapes[0]}; the layer holds {shapes[1]}")
    with torch.no_grad():
        weight.copy_(affine.weight)
        bias.copy_(affine.bias)


class Island(Layer):
    """A layer that computes in float32 however its graph is rounded: `.half()` and `.to(dtype)` leave it wide."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Island":
        def wide(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            short = made.is_floating_point() and made.element_size() < 4
            return tensor.to(made.device) if short else made

        return super()._apply(wide, recurse)


def pointwise(x: Tensor, weight: Tensor, kernels: bool) -> Tensor:
    """A 1x1 convolution without bias: [B, I, H, W] -> [B, O, H, W].

    With kernels in float32 on a CPU a matrix product: 192 to 96 channels of 64 x 64 take 1.1 ms of two cores of a
    Zen 3 in place of oneDNN's 1.8.
    """
    if kernels and x.device.type == "cpu" and x.dtype == torch.float32:
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
    return F.conv2d(x, weight)


class Conv(Layer):
    """A convolution, [B, I, H, W] -> `Stream` of [B, O, H', W']."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride, self.padding = stride, padding
        self._packed = Packed(pack_conv3x3)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Stream:
        """What is added is left to the next norm, but for a bias without kernels, and all on a CPU with them."""
        weight, padding = self.weight, self.padding
        if self.kernels and self._plain and conv3x3_on_cpu(x, weight, padding):
            given = (x, weight, self.bias, residual)
            return Stream(conv3x3(*given, padding=padding, packed=self._packed.of(weight)))
        bias = None if self.kernels else self.bias
        y = F.conv2d(x, weight, bias, self.stride, padding)
        return Stream(y, residual, self.bias if self.kernels else None)

    @property
    def _plain(self) -> bool:
        return self.stride == 1 and self.weight.shape[2:] == (3, 3)


class Upsample(Layer):
    """Nearest 2x upsampling and a 3x3 convolution, folded: [B, C, H, W] -> `Stream` of [B, O, 2H, 2W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4 * outputs, inputs, 2, 2))
        self.bias = nn.Parameter(torch.empty(outputs))
        self._packed = Packed(pack_upsample_conv)

    def fold(self, w: Weights) -> None:
        """From the convolution `w`."""
        conv = w.affine("conv")
        store(self, Affine(fold_upsample(conv).weight, conv.bias))

    def forward(self, x: Tensor) -> Stream:
        """As `Conv`; with kernels the shuffle, too, is left to the next norm, but on a CPU."""
        if self.kernels and upsample_conv_on_cpu(x, len(self.bias)):
            packed = self._packed.of(self.weight)
            return Stream(upsample_conv(x, self.weight, self.bias, packed=packed))
        if self.kernels:
            y = F.conv2d(x, self.weight, None, padding=1)
            return Stream(y, bias=self.bias, shuffled=True)
        return Stream(phase_shuffle(F.conv2d(x, self.weight, self.bias.repeat(4), padding=1)))


class TransposedUpsample(Layer):
    """The same for small pictures, where the positions that `Upsample` computes in excess are many."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, 4, 4))
        self.bias = nn.Parameter(torch.empty(outputs))
        self._packed = Packed(pack_transposed)

    def fold(self, w: Weights) -> None:
        """From the convolution `w`."""
        store(self, fold_upsample_transposed(w.affine("conv")))

    def forward(self, x: Tensor) -> Stream:
        """As `Conv`."""
        if self.kernels and upsample_conv_on_cpu(x, len(self.bias)):
            weight, packed = self._packed.of(self.weight)
            return Stream(upsample_conv(x, weight, self.bias, packed=packed))
        bias = None if self.kernels else self.bias
        y = F.conv_transpose2d(x, self.weight, bias, stride=2, padding=1)
        return Stream(y, bias=self.bias if self.kernels else None)

    def phased(self) -> Upsample:
        """The same numbers as an `Upsample`, for runtimes whose transposed convolution lacks a dtype."""
        other = Upsample(self.weight.shape[0], self.weight.shape[1])
        store(other, Affine(phases_of_transposed(self.weight), self.bias))
        return other.to(self.weight).requires_grad_(False)


class Norm(Layer):
    """GroupNorm and, with `silu`, SiLU of a stream. Returns (y, the settled stream)."""

    def __init__(self, channels: int, groups: int, eps: float, *, silu: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.groups, self.eps, self.silu = groups, eps, silu

    def fold(self, w: Weights, name: str) -> None:
        """From the norm `name`, as it is."""
        store(self, w.affine(name))

    def forward(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """Both [B, C, H, W]."""
        if self.kernels:
            x, residual, bias, shuffled, skip = stream
            done = group_norm_silu(
                x, self.weight, self.bias, self.groups, "silu" if self.silu else "none",
                eps=self.eps, residual=residual, bias=bias, skip=skip, shuffled=shuffled,
            )  # fmt: skip
            return done.y, done.h
        h = stream.settled()
        y = F.group_norm(h, self.groups, self.weight, self.bias, self.eps)
        return F.silu(y, inplace=True) if self.silu else y, h


class ResBlock(Block):
    """norm, conv, norm, conv, and the way around them; the time embedding is in the first convolution's bias."""

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = Norm(inputs, groups, eps)
        self.conv1 = Conv(inputs, outputs)
        self.norm2 = Norm(outputs, groups, eps)
        self.conv2 = Conv(outputs, outputs)
        shortcut = torch.empty(outputs, inputs, 1, 1) if inputs != outputs else None
        self.shortcut = None if shortcut is None else nn.Parameter(shortcut)

    def fold(self, w: Weights, time: Tensor | None = None) -> None:
        """From a diffusers `ResnetBlock2D`, or the adapter's block.

        Args:
            w: its weights.
            time: [T], the time MLP's output, where the block has a `time_emb_proj`.
        """
        self.norm1.fold(w, "norm1")
        self.norm2.fold(w, "norm2")
        first, second = w.affine("conv1"), w.affine("conv2")
        if time is not None:
            first = Affine(first.weight, fold_time(first.bias, w.affine("time_emb_proj"), time))
        if self.shortcut is not None:
            shortcut = w.affine("conv_shortcut")
            second = Affine(second.weight, second.bias + shortcut.bias)
            with torch.no_grad():
                self.shortcut.copy_(shortcut.weight)
        store(self.conv1, first)
        store(self.conv2, second)

    def forward(self, stream: Stream) -> tuple[Stream, Tensor]:
        """The block's output, and its settled input."""
        y, h = self.norm1(stream)
        y, _ = self.norm2(self.conv1(y))
        around = h if self.shortcut is None else pointwise(h, self.shortcut, self.kernels)
        return self.conv2(y, around), h


def run_blocks(blocks: Stack[Any], stream: Stream) -> Stream:
    """One after the other."""
    for block in blocks:
        stream, _ = block(stream)
    return stream
