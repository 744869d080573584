"""Layer normalisation in Triton (formula: `reference.py`; backward: `triton_backward.py`).

x, residual [rows, C]   read once, a row whole in registers: its mean first, then the mean square around it, and
                        what rounding took from the mean: a row whose mean outweighs its deviations loses no digits
h, y        [rows, C]   written once (h not where it is x)

C is a run-time number below WIDTH, the next power of two: 320, 640 and 1280 leave 3 of 8 lanes idle, which costs no
memory traffic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.measured import precision, tuned

VALUES = 2048
"""Of a tile."""
WARPS = {"forward": 4, "gradient": 8}
"""16 values a thread forward, 8 backward, where 16 spill on sm_120."""
SPACE = {"ROWS": (1, 16), "num_warps": (1, 16)}


@triton.jit
def normalised(value, inside, C, eps):
    """(y, rstd [ROWS, 1]) of whole rows [ROWS, WIDTH]; value is zero beyond C, y is anything there."""
    away = tl.where(inside, value - (tl.sum(value, 1) / C)[:, None], 0.0)
    rest = tl.sum(away, 1) / C
    variance = tl.maximum(tl.sum(away * away, 1) / C - rest * rest, 0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))[:, None]
    return (away - rest[:, None]) * rstd, rstd


@triton.jit
def forward_kernel(
    X, RESIDUAL, BIAS, H, Y,
    rows, C, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows."""
    # 64-bit: 256 images of 64 x 64 tokens of 2048 numbers are 2^31.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (channel < C)[None, :]
    offset = row[:, None] * C + channel[None, :]
    value = tl.load(X + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(RESIDUAL + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias = tl.load(BIAS + channel, mask=channel < C, other=0.0)
        value += bias.to(tl.float32)[None, :]
    if HAS_RESIDUAL or HAS_BIAS:
        rounded = value.to(H.dtype.element_ty)
        tl.store(H + offset, rounded, mask=inside)
        value = rounded.to(tl.float32)
    y, _ = normalised(value, inside, C, eps)
    tl.store(Y + offset, y.to(Y.dtype.element_ty), mask=inside)


def layer_norm(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.layer_norm`; one launch."""
    x = x.contiguous()
    rows, channels = rows_of(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    h = x if residual is None and bias is None else torch.empty_like(y)
    # An unused pointer still has to be one.
    added = [x if tensor is None else tensor.contiguous() for tensor in (residual, bias)]
    settings = settings_of("forward", channels, x)
    launch(
        forward_kernel, (triton.cdiv(rows, settings.blocks["ROWS"]),),
        x, *added, h, y, rows, channels, eps,
        settings=settings, HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None,
        WIDTH=triton.next_power_of_2(channels),
    )  # fmt: skip
    return y, h


def rows_of(x: Tensor) -> tuple[int, int]:
    """(rows, C)."""
    return x.numel() // x.shape[-1], x.shape[-1]


def settings_of(kernel: str, channels: int, like: Tensor) -> Settings:
    """As many rows a program as make `VALUES`, at most 16, unless others were measured to be better."""
    width = triton.next_power_of_2(channels)
    key = f"{kernel} C={width} {precision(like.dtype)}"
    return tuned("layer_norm", key, default_settings(kernel, width), SPACE, like.device)


def default_settings(kernel: str, width: int) -> Settings:
    """Of "forward" and "gradient", which hold whole rows."""
    rows = min(max(VALUES // width, 1), 16)
    return Settings({"ROWS": rows}, num_warps=WARPS[kernel], num_stages=1)


def form(kernel, title: str, dtype: str, constants, settings: Settings, principal: bool):
    """One compiled form: every pointer of `dtype`, but partial sums are float32."""
    constants = {**constants, **settings.blocks}
    numbers = {"rows": "i32", "C": "i32", "tiles": "i32", "eps": "fp32", "PART": "*fp32"}
    signature = {n: numbers.get(n, f"*{dtype}") for n in kernel.arg_names if n not in constants}
    divisible = tuple(name for name in ("rows", "C") if name in signature)
    return Specialization(
        f"{kernel.__name__.removesuffix('_kernel')} {title}",
        kernel,
        signature,
        constants,
        settings,
        divisible,
        principal=principal,
    )


def specializations() -> list[Specialization]:
    """The UNet's three widths in half precision, what is added to them, and float32."""
    from fr_kernels.layer_norm import triton_backward

    forms = [
        form(
            forward_kernel,
            f"{added} {dtype} C={channels}",
            dtype,
            {
                "HAS_RESIDUAL": "residual" in added,
                "HAS_BIAS": "bias" in added,
                "WIDTH": triton.next_power_of_2(channels),
            },
            default_settings("forward", triton.next_power_of_2(channels)),
            (added, dtype, channels) == ("x+residual+bias", "fp16", 1280),
        )
        for added, dtype, channels in (
            *((added, "fp16", 1280) for added in ("x", "x+bias", "x+residual", "x+residual+bias")),
            ("x+residual+bias", "fp16", 640),
            ("x+residual+bias", "fp16", 320),
            ("x+residual+bias", "fp32", 1280),
        )
    ]
    return [*forms, *triton_backward.specializations()]
