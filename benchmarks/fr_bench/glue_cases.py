"""Cases of the ops between convolutions and products: norms, sums, shuffles, gates."""

import torch
import torch.nn.functional as F
from torch import Tensor

import fr_kernels
from fr_bench.case import Case, Inputs, Outputs, random


def group_norm(batch: int, channels: int, side: int, groups: int) -> Case:
    """A norm with residual and bias, channels_last."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        x = random(batch, channels, side, side)(device, dtype)
        x = x.to(memory_format=torch.channels_last)
        return x, random(channels)(device, dtype), random(channels)(device, dtype)

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, w, b, 1e-6))

    def ours(x: Tensor, w: Tensor, b: Tensor, impl: str) -> Tensor:
        return fr_kernels.group_norm_silu(x, w, b, groups, impl=impl).y

    def launched(*inputs: Tensor) -> Inputs:
        return *inputs, groups, 1e-6, True, None, None, None, False

    shape, small = f"[{batch}, {channels}, {side}, {side}] groups {groups}", side < 64
    return Case(
        "group_norm_silu", shape, inputs, ours, eager,
        launched=launched, on_cpu=small, native=True,
    )  # fmt: skip


def conv3x3(batch: int, inputs: int, outputs: int, side: int) -> Case:
    """A convolution with bias and residual, channels_last."""

    def made(device: torch.device, dtype: torch.dtype) -> Inputs:
        x = random(batch, inputs, side, side)(device, dtype)
        residual = random(batch, outputs, side, side)(device, dtype)
        weight = (random(outputs, inputs, 3, 3)(device, torch.float32) / (9 * inputs) ** 0.5).to(
            dtype
        )
        pictures = [t.to(memory_format=torch.channels_last) for t in (x, residual)]
        return pictures[0], weight, random(outputs)(device, dtype), pictures[1]

    def eager(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1) + residual

    shape = f"[{batch}, {inputs}, {side}, {side}] -> {outputs} + bias + residual"
    return Case(
        "conv3x3", shape, made, fr_kernels.conv3x3, eager,
        compiled="reference", on_cpu=side < 64, native=True,
    )  # fmt: skip


def upsample_conv(batch: int, channels: int, side: int) -> Case:
    """Nearest 2x upsampling and a convolution, folded into one of four phases, which are gathered behind it."""

    def made(device: torch.device, dtype: torch.dtype) -> Inputs:
        x = random(batch, channels, side, side)(device, dtype)
        weight = random(4 * channels, channels, 2, 2)(device, torch.float32) / (4 * channels) ** 0.5
        bias = random(channels)(device, dtype)
        return x.to(memory_format=torch.channels_last), weight.to(dtype), bias

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(x, weight, bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))
        rows = [
            torch.stack([y[:, py, px, :, py : py + side, px : px + side] for px in (0, 1)], -1)
            for py in (0, 1)
        ]  # of each parity [B, C, H, W, 2]
        return torch.stack(rows, 3).flatten(4).flatten(2, 3)

    return Case(
        "upsample_conv", f"[{batch}, {channels}, {side}, {side}] -> {channels} + bias", made,
        fr_kernels.upsample_conv, eager, compiled="reference", on_cpu=side < 64, native=True,
    )  # fmt: skip


def with_skip(batch: int, own: int, skipped: int, side: int, groups: int) -> Case:
    """The first norm of a U-Net's block on the way up: residual and bias added, the skip's channels behind."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        x, residual, skip = (
            random(batch, channels, side, side)(device, dtype).to(memory_format=torch.channels_last)
            for channels in (own, own, skipped)
        )
        w, b = (random(own + skipped)(device, dtype) for _ in range(2))
        return x, w, b, residual, random(own)(device, dtype), skip

    def eager(
        x: Tensor, w: Tensor, b: Tensor, residual: Tensor, bias: Tensor, skip: Tensor
    ) -> Tensor:
        h = torch.cat([x + residual + bias[:, None, None], skip], 1)
        return F.silu(F.group_norm(h, groups, w, b, 1e-6))

    def ours(
        x: Tensor, w: Tensor, b: Tensor, residual: Tensor, bias: Tensor, skip: Tensor, impl: str
    ) -> Tensor:
        return fr_kernels.group_norm_silu(
            x, w, b, groups, residual=residual, bias=bias, skip=skip, impl=impl
        ).y

    def launched(*inputs: Tensor) -> Inputs:
        return *inputs[:3], groups, 1e-6, True, *inputs[3:], False

    shape, small = f"[{batch}, {own} + {skipped}, {side}, {side}] groups {groups}", side < 16
    return Case("group_norm_silu", shape, inputs, ours, eager, launched=launched, on_cpu=small)


def phase(batch: int, channels: int, side: int) -> Case:
    """The shuffle behind a folded upsample."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        y = random(batch, 4 * channels, side + 1, side + 1)(device, dtype)
        return (y.to(memory_format=torch.channels_last),)

    def eager(y: Tensor) -> Tensor:
        n = y.shape[-1] - 1
        shifts = ((0, 0), (0, 1), (1, 0), (1, 1))
        parts = [
            p[:, :, i : i + n, j : j + n] for p, (i, j) in zip(y.chunk(4, 1), shifts, strict=True)
        ]
        return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)

    shape = f"[{batch}, {4 * channels}, {side + 1}, {side + 1}]"
    ours, small = fr_kernels.phase_shuffle, side < 64
    return Case("phase_shuffle", shape, inputs, ours, eager, on_cpu=small)


def layer_norm(rows: int, channels: int) -> Case:
    """A norm of tokens with residual and bias."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        made = random(rows, channels)
        return made(device, dtype), made(device, dtype), random(channels)(device, dtype)

    def eager(x: Tensor, residual: Tensor, bias: Tensor) -> Outputs:
        h = x + residual + bias
        return F.layer_norm(h, h.shape[-1:]), h

    def ours(x: Tensor, residual: Tensor, bias: Tensor, impl: str) -> Outputs:
        return fr_kernels.layer_norm(x, residual=residual, bias=bias, impl=impl)

    shape = f"[{rows}, {channels}] + residual + bias"
    return Case("layer_norm", shape, inputs, ours, eager, on_cpu=rows < 256)


def geglu(rows: int, width: int) -> Case:
    """The feed-forward's gate."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        return (random(rows, 2 * width)(device, dtype),)

    def eager(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)

    return Case(
        "geglu", f"[{rows}, {2 * width}]", inputs, fr_kernels.geglu, eager, on_cpu=rows < 256
    )


def settle(batch: int, channels: int, side: int) -> Case:
    """A picture's last additions, padded."""

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        made = [random(batch, channels, side, side)(device, dtype) for _ in range(2)]
        pictures = [picture.to(memory_format=torch.channels_last) for picture in made]
        return *pictures, random(channels)(device, dtype)

    def eager(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        return F.pad(x + residual + bias[:, None, None], (0, 1, 0, 1))

    def ours(x: Tensor, residual: Tensor, bias: Tensor, impl: str) -> Tensor:
        return fr_kernels.settle(x, residual=residual, bias=bias, pad=True, impl=impl)

    shape = f"[{batch}, {channels}, {side}, {side}] + residual + bias, padded"
    return Case("settle", shape, inputs, ours, eager, on_cpu=side < 32)
