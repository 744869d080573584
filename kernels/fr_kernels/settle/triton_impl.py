"""Settling a picture in Triton, channels_last in and out (formula: `reference.py`; backward: `triton_backward.py`).

x, residual   read once
y             written once, zeros of the padding included
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import precision, tuned
from fr_kernels.phase_shuffle.triton_impl import gather_index

SPACE = {"PIXELS": (8, 1024), "CHANNELS": (16, 256), "num_warps": (1, 16)}


@triton.jit
def forward_kernel(
    X, RESIDUAL, BIAS, Y,
    height, width, C,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, PAD: tl.constexpr, SHUFFLED: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One program: PIXELS pixels x CHANNELS channels of one image of y. height, width: without the padding."""
    image = tl.program_id(2).to(tl.int64)  # 32 x 512 x 512 x 256 elements are 2^31
    target = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    pixel, pixels, read = target, height * width, target < height * width
    if PAD:
        row, column = target // (width + 1), target % (width + 1)
        pixel, pixels = row * width + column, (height + 1) * (width + 1)
        read = (row < height) & (column < width)
    within = (channel < C)[None, :]
    inside = read[:, None] & within
    offset = ((image * height * width + pixel) * C)[:, None] + channel[None, :]
    source = offset
    if SHUFFLED:
        vectors = 4 * (height // 2 + 1) * (width // 2 + 1)
        source = ((image * vectors + gather_index(pixel, width)) * C)[:, None] + channel[None, :]
    value = tl.load(X + source, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(RESIDUAL + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(BIAS + channel, mask=channel < C, other=0.0).to(tl.float32)
        value = tl.where(inside, value + bias[None, :], 0.0)
    written = (target < pixels)[:, None] & within
    out = ((image * pixels + target) * C)[:, None] + channel[None, :]
    tl.store(Y + out, value.to(Y.dtype.element_ty), mask=written)


def settle(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: bool, shuffled: bool
) -> Tensor:
    """See `reference.settle`; one launch."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = picture_shape(x, shuffled)
    shape = (batch, channels, height + pad, width + pad)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    # An unused pointer still has to be one.
    residual_or_x = x
    if residual is not None:
        residual_or_x = residual.contiguous(memory_format=torch.channels_last)
    pixels = shape[2] * shape[3]
    settings = settings_of("forward", channels, y)
    launch(
        forward_kernel, grid_of(settings, pixels, channels, batch),
        x, residual_or_x, x if bias is None else bias.contiguous(), y, height, width, channels,
        settings=settings, HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None,
        PAD=pad, SHUFFLED=shuffled,
    )  # fmt: skip
    return y


def picture_shape(x: Tensor, shuffled: bool) -> tuple[int, int, int, int]:
    """[B, C, H, W] of the picture that x stands for."""
    batch, channels, height, width = x.shape
    if shuffled:
        return batch, channels // 4, 2 * (height - 1), 2 * (width - 1)
    return batch, channels, height, width


def grid_of(settings: Settings, pixels: int, channels: int, batch: int) -> tuple[int, int, int]:
    """(tiles of pixels, tiles of channels, images)."""
    blocks = settings.blocks
    tiles = triton.cdiv(pixels, blocks["PIXELS"])
    return tiles, triton.cdiv(channels, blocks["CHANNELS"]), batch


def settings_of(kernel: str, channels: int, like: Tensor) -> Settings:
    """`default_settings`, unless others were measured to be better on the GPU of `like`."""
    key = f"{kernel} C={channels} {precision(like.dtype)}"
    return tuned("settle", key, default_settings(channels), SPACE, like.device)


def default_settings(channels: int) -> Settings:
    """2048 values: 64 channels (128 bytes of half precision) where they divide C, else 32 or 16 that do.

    Other pictures are not read 128 bits at a time: 1024 values, because 2048 spill 64 bytes on sm_90.
    """
    fitting = [block for block in (64, 32, 16) if channels % block == 0]
    block = fitting[0] if fitting else min(64, triton.next_power_of_2(channels))
    pixels = (2048 if fitting else 1024) // block
    return Settings({"PIXELS": pixels, "CHANNELS": block}, num_warps=4, num_stages=1)


def form(
    kernel, title: str, dtype: str, constants, principal: bool = False, channels: int = 64
) -> Specialization:
    """One compiled form, with 64 channels for C = 64 n: every pointer of `dtype`, but partial sums are float32."""
    settings = default_settings(channels)
    constants = {**constants, **settings.blocks}
    others = {"height": "i32", "width": "i32", "C": "i32", "tiles": "i32", "PART": "*fp32"}
    signature = {n: others.get(n, f"*{dtype}") for n in kernel.arg_names if n not in constants}
    name = f"{kernel.__name__.removesuffix('_kernel')} {title} {dtype} C={channels}"
    name = f"{name}n" if channels == 64 else name
    divisible = ("height", "width", "C") if channels == 64 else ("height", "width")
    return Specialization(
        name, kernel, signature, constants, settings, divisible, principal=principal
    )


def specializations() -> list[Specialization]:
    """What the graph's pictures await: of the encoder padded, of the decoder and the UNet shuffled or not.

    C = 3 and 4 are pictures and latents; 70 is any other width.
    """
    from fr_kernels.settle import triton_backward

    forms = [
        form(
            forward_kernel,
            what,
            dtype,
            {
                "HAS_RESIDUAL": "residual" in what,
                "HAS_BIAS": "bias" in what,
                "PAD": "pad" in what,
                "SHUFFLED": "shuffled" in what,
            },
            (what, dtype, channels) == ("x+residual+bias pad", "fp16", 64),
            channels,
        )
        for what, dtype, channels in (
            ("x+bias", "fp16", 64),
            ("x+residual", "fp16", 64),
            ("x+residual+bias", "fp16", 64),
            ("x+residual+bias pad", "fp16", 64),
            ("shuffled+bias", "fp16", 64),
            ("x+residual+bias pad", "fp32", 64),
            ("x+bias", "fp16", 3),
            ("x+bias", "fp16", 4),
            ("x+residual+bias pad", "fp16", 70),
        )
    ]
    return [*forms, *triton_backward.specializations()]
