"""Plain torch version of layer normalisation with residual and bias, written for reading (ours).

x, residual [..., C]; bias [C]:

    h    = x + residual + bias          rounded to the dtype of x
    y    = (h - mean) rstd              mean and rstd = 1 / sqrt(var + eps): of a row of C numbers

The norm's own weight and bias are not here: the linear layer behind it holds them (`fold_scale_into_linear`).
Backward, from dy and from dh, the gradient that reaches h directly; <.> is the mean over a row:

    dx    = rstd (dy - <dy> - y <dy y>) + dh        = dresidual; y anew from h, not rounded
    dbias = sum(dx)                                 over all rows

All arithmetic is in float32 (float64 for float64); y, h and dx are contiguous.
"""

import torch
from torch import Tensor


def layer_norm(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(y, h); h is `x` itself where nothing is added."""
    h = x
    if residual is not None or bias is not None:
        wide = _wide(x)
        total = wide if residual is None else wide + residual.to(wide.dtype)
        total = total if bias is None else total + bias.to(wide.dtype)
        h = _rounded(total, x)
    y, _ = _normalised(h, eps)
    return _rounded(y, x), h


def layer_norm_backward(
    grad: Tensor, h: Tensor, bias: Tensor | None, grad_h: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(dx, dbias); dbias is empty without bias."""
    y, rstd = _normalised(h, eps)
    dy = grad.to(y.dtype)
    dx = rstd * (dy - dy.mean(-1, keepdim=True) - y * (dy * y).mean(-1, keepdim=True))
    if grad_h is not None:
        dx = dx + grad_h.to(y.dtype)
    if bias is None:
        return _rounded(dx, h), h.new_empty(0)
    return _rounded(dx, h), dx.reshape(-1, h.shape[-1]).sum(0).to(bias.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normalised(h: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y, rstd), not rounded."""
    values = _wide(h)
    away = values - values.mean(-1, keepdim=True)
    away = away - away.mean(-1, keepdim=True)  # what rounding took from the mean
    rstd = (away.square().mean(-1, keepdim=True) + eps).rsqrt()
    return away * rstd, rstd


def _rounded(values: Tensor, like: Tensor) -> Tensor:
    """In the dtype of `like`, contiguous."""
    return like.new_empty(like.shape).copy_(values)
