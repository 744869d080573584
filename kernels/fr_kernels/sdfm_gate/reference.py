"""Plain torch version of HDRFace's feature gate (arXiv 2605.14821, equations 3 to 7), written for reading.

f_sr, f_lr [B, N, C] are the features of the restored and of the degraded picture.

    a = LN(f_sr), b = LN(f_lr), d = |a - b|                     [B, N, C]; one shared LayerNorm, eps 1e-5       (3)
    a_c = sigmoid(Wc2 silu(Wc1 [mean a; mean b; mean d] + bc1) + bc2)   [B, C]; means over the N tokens         (4)
    a_t = sigmoid(Wt2 silu(Wt1 [a; b; d] + bt1) + bt2)                  [B, N]                                  (5)
    g = clamp(a_t a_c, 1e-6, 1 - 1e-6)                                  [B, N, C]                               (6)
    out = g a + (1 - g) b                                               [B, N, C]; blends the NORMALISED ones   (7)

All of it is computed in float32 (float64 for float64 features): in float16 the upper bound of g would be 1. The
gradient of the clamp is zero outside its bounds, that of |x| is zero at 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
GATE_EPS = 1e-6


class SdfmWeights(NamedTuple):
    """The learned tensors, all of the features' dtype; H is the width of both hidden layers (512 in HDRFace)."""

    norm_weight: Tensor
    """[C]"""
    norm_bias: Tensor
    """[C]"""
    channel_w1: Tensor
    """[H, 3C], columns in the order [a; b; d]"""
    channel_b1: Tensor
    """[H]"""
    channel_w2: Tensor
    """[C, H]"""
    channel_b2: Tensor
    """[C]"""
    token_w1: Tensor
    """[H, 3C], columns in the order [a; b; d]"""
    token_b1: Tensor
    """[H]"""
    token_w2: Tensor
    """[1, H]"""
    token_b2: Tensor
    """[1]"""


class GateState(NamedTuple):
    """What the backward keeps besides the arguments; float32 (float64 for float64 features)."""

    statistics: Tensor
    """[B, 4, N]: mean and 1 / deviation of f_sr, then of f_lr"""
    token_gate: Tensor
    """[B, N]: a_t"""
    channel_gate: Tensor
    """[B, C]: a_c"""
    channel_hidden: Tensor
    """[B, H]: the channel MLP's hidden layer before SiLU"""


def sdfm_gate(f_sr: Tensor, f_lr: Tensor, weights: SdfmWeights) -> Tensor:
    """[B, N, C], the features' dtype."""
    return sdfm_gate_with_state(f_sr, f_lr, weights)[0]


def sdfm_gate_with_state(
    f_sr: Tensor, f_lr: Tensor, weights: SdfmWeights
) -> tuple[Tensor, GateState]:
    """The output, and what `sdfm_gate_backward` needs."""
    w = SdfmWeights(*(tensor.to(wide_dtype(f_sr)) for tensor in weights))
    statistics = torch.cat([_statistics(f_sr), _statistics(f_lr)], 1)
    a, b = _normalised(f_sr, f_lr, w, statistics)
    d = (a - b).abs()
    pooled = torch.cat([a.mean(1), b.mean(1), d.mean(1)], -1)
    channel_hidden = F.linear(pooled, w.channel_w1, w.channel_b1)
    channel_gate = F.linear(F.silu(channel_hidden), w.channel_w2, w.channel_b2).sigmoid()
    token_hidden = F.linear(torch.cat([a, b, d], -1), w.token_w1, w.token_b1)
    token_gate = F.linear(F.silu(token_hidden), w.token_w2, w.token_b2).sigmoid()[..., 0]
    gate = (token_gate[..., None] * channel_gate[:, None]).clamp(GATE_EPS, 1 - GATE_EPS)
    out = gate * a + (1 - gate) * b
    return out.to(f_sr.dtype), GateState(statistics, token_gate, channel_gate, channel_hidden)


def sdfm_gate_backward(
    grad: Tensor, f_sr: Tensor, f_lr: Tensor, weights: SdfmWeights, state: GateState
) -> tuple[Tensor, Tensor, SdfmWeights]:
    """Gradients to f_sr, f_lr and every weight, each in the dtype of its tensor.

    Args:
        grad: [B, N, C], the gradient to the output.
        f_sr: as in the forward, like `f_lr` and `weights`.
        f_lr: see `f_sr`.
        weights: see `f_sr`.
        state: what the forward kept.
    """
    w = SdfmWeights(*(tensor.to(wide_dtype(f_sr)) for tensor in weights))
    a, b = _normalised(f_sr, f_lr, w, state.statistics)
    d, sign, tokens = (a - b).abs(), (a - b).sign(), a.shape[1]
    a_t, a_c = state.token_gate[..., None], state.channel_gate[:, None]
    product = a_t * a_c
    gate = product.clamp(GATE_EPS, 1 - GATE_EPS)
    dout = grad.to(a.dtype)
    dproduct = torch.where(gate == product, dout * (a - b), 0.0)

    x = torch.cat([a, b, d], -1).flatten(0, 1)
    dlogit = ((dproduct * a_c).sum(-1, keepdim=True) * a_t * (1 - a_t)).flatten(0, 1)
    token = _mlp_backward(dlogit, x, w.token_w1, w.token_b1, w.token_w2)
    dlogit = (dproduct * a_t).sum(1) * state.channel_gate * (1 - state.channel_gate)
    pooled = torch.cat([a.mean(1), b.mean(1), d.mean(1)], -1)
    channel = _mlp_backward(dlogit, pooled, w.channel_w1, w.channel_b1, w.channel_w2)

    dx = token[0].unflatten(0, a.shape[:2]) + channel[0][:, None] / tokens
    da, db, dd = dx.chunk(3, -1)
    da = da + sign * dd + gate * dout
    db = db - sign * dd + (1 - gate) * dout
    sr = _norm_backward(da, f_sr, w.norm_weight, state.statistics[:, :2])
    lr = _norm_backward(db, f_lr, w.norm_weight, state.statistics[:, 2:])
    norm = (sr[1] + lr[1], sr[2] + lr[2])
    dtype = f_sr.dtype
    dweights = SdfmWeights(*(tensor.to(dtype) for tensor in (*norm, *channel[1:], *token[1:])))
    return sr[0].to(dtype), lr[0].to(dtype), dweights


def wide_dtype(f: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float32, or float64 for float64."""
    return torch.promote_types(f.dtype, torch.float32)


def _statistics(f: Tensor) -> Tensor:
    """[B, 2, N]: mean and 1 / deviation of each token."""
    f = f.to(wide_dtype(f))
    mean = f.mean(-1)
    variance = (f - mean[..., None]).square().mean(-1)
    return torch.stack([mean, (variance + NORM_EPS).rsqrt()], 1)


def _normalised(f_sr: Tensor, f_lr: Tensor, w: SdfmWeights, statistics: Tensor) -> list[Tensor]:
    """The layer-normed a and b."""
    mean_sr, rstd_sr, mean_lr, rstd_lr = statistics[..., None].unbind(1)
    return [
        (f - mean) * rstd * w.norm_weight + w.norm_bias
        for f, mean, rstd in ((f_sr, mean_sr, rstd_sr), (f_lr, mean_lr, rstd_lr))
    ]


def _mlp_backward(
    dlogit: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients to x, w1, b1, w2, b2 of `w2 silu(w1 x + b1) + b2`; dlogit [M, O], x [M, I]."""
    hidden = F.linear(x, w1, b1)
    sigmoid = hidden.sigmoid()
    dhidden = (dlogit @ w2) * sigmoid * (1 + hidden * (1 - sigmoid))
    dw2 = dlogit.T @ (hidden * sigmoid)
    return dhidden @ w1, dhidden.T @ x, dhidden.sum(0), dw2, dlogit.sum(0)


def _norm_backward(
    dy: Tensor, f: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to f, the norm's weight and bias; statistics [B, 2, N]."""
    mean, rstd = statistics[..., None].unbind(1)
    x = (f - mean) * rstd
    dx = dy * weight
    df = rstd * (dx - dx.mean(-1, keepdim=True) - x * (dx * x).mean(-1, keepdim=True))
    return df, (dy * x).sum((0, 1)), dy.sum((0, 1))
