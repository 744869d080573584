"""Backward of layer normalisation in Triton (formula: `reference.py`).

1  gradient   dx [rows, C]       dy, dh and h read once, dx written once; y anew from h
              PART [tiles, C]    where there is a bias: sums of dx over a tile's rows
2  sum        dbias [C]          sums over the tiles, in a fixed order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.layer_norm.triton_impl import (
    default_settings,
    form,
    normalised,
    rows_of,
    settings_of,
)
from fr_kernels.measured import tuned

TILES = 512
"""Most partial sums of a channel."""
SUM = Settings({"ROWS": 64, "CHANNELS": 32}, num_warps=4, num_stages=1)
SUM_SPACE = {"ROWS": (8, 256), "CHANNELS": (16, 128), "num_warps": (1, 16)}


@triton.jit
def gradient_kernel(
    DY, DH, H, DX, PART,
    rows, C, eps,
    HAS_DH: tl.constexpr, HAS_BIAS: tl.constexpr, STEPS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: STEPS x ROWS rows."""
    channel = tl.arange(0, WIDTH)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (channel < C)[None, :]
        offset = row[:, None] * C + channel[None, :]
        h = tl.load(H + offset, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + offset, mask=inside, other=0.0).to(tl.float32)
        y, rstd = normalised(h, inside, C, eps)
        first, second = tl.sum(dy, 1) / C, tl.sum(dy * y, 1) / C
        dx = rstd * (dy - first[:, None] - y * second[:, None])
        if HAS_DH:
            dx += tl.load(DH + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + offset, dx.to(DX.dtype.element_ty), mask=inside)
        if HAS_BIAS:
            total += tl.where(inside, dx, 0.0)
    if HAS_BIAS:
        part = PART + tl.program_id(0).to(tl.int64) * C + channel
        tl.store(part, tl.sum(total, 0), mask=channel < C)


@triton.jit
def sum_kernel(
    PART, OUT, tiles, C, STEPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    """One program: CHANNELS channels of the sum over [tiles, C], ROWS tiles at a time."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(STEPS):
        tile = step * ROWS + tl.arange(0, ROWS)
        inside = (tile < tiles)[:, None] & (channel < C)[None, :]
        offset = tile[:, None].to(tl.int64) * C + channel[None, :]
        total += tl.load(PART + offset, mask=inside, other=0.0)
    tl.store(OUT + channel, tl.sum(total, 0).to(OUT.dtype.element_ty), mask=channel < C)


def layer_norm_backward(
    grad: Tensor, h: Tensor, bias: Tensor | None, grad_h: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.layer_norm_backward`; one launch, two with a bias."""
    dy, h = grad.contiguous(), h.contiguous()
    # An unused pointer still has to be one.
    dh = dy if grad_h is None else grad_h.contiguous()
    rows, channels = rows_of(h)
    dx = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    settings = settings_of("gradient", channels, h)
    tiles, steps = _tiles(rows if bias is not None else 0, settings)
    grid = (triton.cdiv(rows, settings.blocks["ROWS"] * steps),)
    part = dx
    if bias is not None:
        part = torch.empty((tiles, channels), dtype=torch.float32, device=h.device)
    launch(
        gradient_kernel, grid, dy, dh, h, dx, part, rows, channels, eps,
        settings=settings, HAS_DH=grad_h is not None, HAS_BIAS=bias is not None,
        STEPS=steps, WIDTH=triton.next_power_of_2(channels),
    )  # fmt: skip
    return dx, h.new_empty(0) if bias is None else sum_of_tiles("layer_norm", part, bias)


def _tiles(rows: int, settings: Settings) -> tuple[int, int]:
    """(tiles, steps of each) such that there are at most `TILES`; one step where nothing is summed (rows = 0)."""
    most = settings.blocks["ROWS"] * TILES
    steps = triton.next_power_of_2(max(triton.cdiv(rows, most), 1))
    return triton.cdiv(rows, settings.blocks["ROWS"] * steps), steps


def sum_of_tiles(op: str, part: Tensor, bias: Tensor) -> Tensor:
    """[tiles, C] in float32 -> the sum, shape and dtype of `bias`; one launch."""
    tiles, channels = part.shape
    settings = tuned(op, f"sum C={channels}", SUM, SUM_SPACE, part.device)
    dbias = bias.new_empty(channels)
    grid = (triton.cdiv(channels, settings.blocks["CHANNELS"]),)
    steps = triton.cdiv(tiles, settings.blocks["ROWS"])
    launch(sum_kernel, grid, part, dbias, tiles, channels, settings=settings, STEPS=steps)
    return dbias


def specializations() -> list[Specialization]:
    """The UNet's widths in half precision with and without a bias, and float32."""
    forms = [
        form(
            gradient_kernel,
            f"{source} {dtype} C={channels}",
            dtype,
            {
                "HAS_DH": "dh" in source,
                "HAS_BIAS": "bias" in source,
                "STEPS": 1 if "bias" not in source else 4,
                "WIDTH": triton.next_power_of_2(channels),
            },
            default_settings("gradient", triton.next_power_of_2(channels)),
            (source, dtype, channels) == ("dy+dh bias", "fp16", 1280),
        )
        for source, dtype, channels in (
            ("dy", "fp16", 1280),
            ("dy+dh bias", "fp16", 1280),
            ("dy+dh bias", "fp16", 640),
            ("dy+dh bias", "fp16", 320),
            ("dy+dh bias", "fp32", 1280),
        )
    ]
    steps = {"STEPS": TILES // SUM.blocks["ROWS"]}
    return [
        *forms,
        *(form(sum_kernel, f"{d}", d, steps, SUM, d == "fp16") for d in ("fp16", "fp32")),
    ]
