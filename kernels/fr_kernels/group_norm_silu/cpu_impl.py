"""Group normalisation on a CPU: `csrc/group_norm_silu.cpp` (formula: `reference.py`), forward, in float32."""

from functools import cache

import torch
from torch import Tensor

from fr_kernels import native
from fr_kernels.phase_shuffle.reference import phase_shuffle

SOURCE = "group_norm_silu"


def group_norm_silu(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    bias: Tensor | None,
    skip: Tensor | None,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.group_norm_silu`."""
    x = _readable(phase_shuffle(x) if shuffled else x)
    residual, skip = (None if t is None else _readable(t) for t in (residual, skip))
    batch, own, height, width = x.shape
    skipped = 0 if skip is None else skip.shape[1]
    shape = (batch, own + skipped, height, width)
    y = torch.empty(shape, memory_format=torch.channels_last)
    plain = residual is None and bias is None and skip is None
    h = None if plain else torch.empty_like(y)
    statistics = torch.empty(batch, 3, groups)
    pixels, threads = height * width, native.threads()
    size = _scratch(batch, pixels, shape[1], groups, threads)
    scratch = torch.empty(size, dtype=torch.uint8)
    bias = None if bias is None else bias.contiguous()
    bias_step = own if bias is not None and bias.ndim == 2 else 0
    native.call(
        SOURCE, "group_norm_silu", x, residual, bias, skip, w.contiguous(), b.contiguous(), h, y, statistics, scratch,
        batch, pixels, own, skipped, bias_step, groups, eps, int(silu), threads,
    )  # fmt: skip
    return y, x if h is None else h, statistics


@cache
def _scratch(*sizes: int) -> int:
    return native.call(SOURCE, "group_norm_silu_scratch", *sizes)


def _readable(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
