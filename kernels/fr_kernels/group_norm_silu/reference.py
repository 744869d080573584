"""Plain torch version of group normalisation with residual, bias and SiLU, written for reading (ours).

x, residual [B, C, H, W]; w, b [C]; bias [C] or [B, C]; G groups of neighbouring channels:

    h    = x + residual + bias          rounded to the dtype of x; with `shuffled`, phase_shuffle(x) in place of x
         = cat(that, skip)              with skip [B, D, H, W]; then w and b are [C + D], and a group may have of both
    xhat = (h - mean - rest) rstd       mean + rest, rstd = 1 / sqrt(var + eps): of a group's channels and all pixels
    z    = w xhat + b
    y    = z sigmoid(z)                 without `silu`: z

Backward, from dy and from dh, the gradient that reaches h directly; <.> is the mean over a group:

    dz        = dy sigmoid(z) (1 + z (1 - sigmoid(z)))          without `silu`: dy
    dw, db    = sum(dz xhat), sum(dz)                           over images and pixels
    dx        = rstd (w dz - <w dz> - xhat <w dz xhat>) + dh    = dresidual; with `shuffled`, scattered back
    dbias     = sum(dx)                                         over pixels, and over images for bias [C]

With a skip, dx and dskip are the two slices of that dx, and dbias sums the first.

The mean is kept as two numbers, mean and the rest that rounding took from it: at a mean of 100 deviations that rest
is up to 4e-6 deviations, and dx multiplies it by w squared. All arithmetic is in float32 (float64 for float64);
tensors are in channels_last memory.
"""

import torch
from torch import Tensor

from fr_kernels.phase_shuffle.reference import phase_shuffle, phase_shuffle_backward


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
    """(y, h, statistics [B, 3, G]: mean, rest, rstd); h is `x` itself where nothing is added or shuffled."""
    h = phase_shuffle(x) if shuffled else x
    wide = wide_dtype(x.dtype)
    total = h.to(wide)
    if residual is not None:
        total = total + residual.to(wide)
    if bias is not None:
        total = total + bias.to(wide)[..., None, None]
    if residual is not None or bias is not None:
        h = channels_last(total.to(x.dtype))
    if skip is not None:
        h = channels_last(torch.cat([h, skip], 1))
    values = h.to(wide).unflatten(1, (groups, -1)).flatten(2)
    mean = values.mean(2)
    away = values - mean[..., None]
    rest = away.mean(2)
    variance = (away - rest[..., None]).square().mean(2)
    statistics = torch.stack((mean, rest, (variance + eps).rsqrt()), 1)
    _, z = _normalised(h, w, b, statistics)
    y = z * z.sigmoid() if silu else z
    return channels_last(y.to(x.dtype)), h, statistics


def group_norm_silu_backward(
    grad: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    w: Tensor,
    b: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    silu: bool,
    skipped: int,
    shuffled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dw, db, dbias, dskip); dbias is empty without bias. skipped: channels of the skip, 0 where there is none."""
    xhat, z = _normalised(h, w, b, statistics)
    s = z.sigmoid()
    dz = grad.to(z.dtype) * (s * (1 + z * (1 - s)) if silu else 1)
    scaled, rstd = dz * w.to(z.dtype)[:, None, None], statistics[:, 2]
    dx = scaled - _group_mean(scaled, rstd) - xhat * _group_mean(scaled * xhat, rstd)
    dx = dx * _spread(rstd, h)
    if grad_h is not None:
        dx = dx + grad_h.to(z.dtype)
    dx, dskip = dx.split((h.shape[1] - skipped, skipped), 1)
    dbias = h.new_empty(0) if bias is None else dx.sum((2, 3))
    if bias is not None:
        dbias = (dbias.sum(0) if bias.ndim == 1 else dbias).to(bias.dtype)
    dx, dskip = (channels_last(t.to(h.dtype)) for t in (dx, dskip))
    dw, db = (dz * xhat).sum((0, 2, 3)).to(w.dtype), dz.sum((0, 2, 3)).to(b.dtype)
    return phase_shuffle_backward(dx) if shuffled else dx, dw, db, dbias, dskip


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the arithmetic runs in."""
    return torch.promote_types(dtype, torch.float32)


def channels_last(tensor: Tensor) -> Tensor:
    """A copy with the strides that `torch.empty(..., memory_format=torch.channels_last)` has, at any size."""
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)


def _normalised(h: Tensor, w: Tensor, b: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    """(xhat, z)."""
    mean, rest, rstd = (_spread(row, h) for row in statistics.unbind(1))
    xhat = (h.to(mean.dtype) - mean - rest) * rstd
    return xhat, xhat * w.to(mean.dtype)[:, None, None] + b.to(mean.dtype)[:, None, None]


def _spread(statistic: Tensor, h: Tensor) -> Tensor:
    """[B, G] -> [B, C, 1, 1]."""
    return statistic.repeat_interleave(h.shape[1] // statistic.shape[1], 1)[..., None, None]


def _group_mean(values: Tensor, statistic: Tensor) -> Tensor:
    """Mean of [B, C, H, W] over each group -> [B, C, 1, 1]."""
    means = values.unflatten(1, (statistic.shape[1], -1)).flatten(2).mean(2)
    return _spread(means, values)
