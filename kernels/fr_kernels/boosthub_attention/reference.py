"""Plain torch version of BoostHub attention (FLIPNET, equations 4 and 5), written for reading.

Two attentions, each with its own softmax, written side by side:

    A(q, k, v)[b, i, h] = sum_j softmax_j(q[b, i, h] . k[b, j, h] / sqrt(D)) v[b, j, h]
    out[b, i, 0] = A(q, k, v)                    the restored stream looks at itself
    out[b, i, 1] = phi A(q_hub, k_hub, v_hub)    it looks at the low-quality stream

so that equation 5 is one matrix product, F_joint = [W_sa, W_O] out[b, i]. q, q_hub [B, L, H, D]; k, v [B, S, H, D];
k_hub, v_hub [B, S_hub, H, D]; phi a scalar; out [B, L, 2, H, D]. Products, softmax and sums are in float32 (in
float64 for float64 inputs).

Gradients, with p the softmax and g the gradient to out: for each half, with factor = 1 or phi,

    dp_ij = g_i . v_j,   delta_i = g_i . A_i = sum_j p_ij dp_ij,   ds_ij = p_ij (dp_ij - delta_i) / sqrt(D)
    dq_i = factor sum_j ds_ij k_j,   dk_j = factor sum_i ds_ij q_i,   dv_j = factor sum_i p_ij g_i
    dphi = sum of delta over the hub half: it needs the unscaled A, since phi may be 0
"""

import math

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""To q, k, v, q_hub, k_hub, v_hub and phi."""


def boosthub_attention(
    q: Tensor, k: Tensor, v: Tensor, q_hub: Tensor, k_hub: Tensor, v_hub: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See above.

    Returns:
        out [B, L, 2, H, D]; the unscaled hub half [B, L, H, D]; and what a backward pass keeps of the scores,
        lse [B, 2, H, L] = log2 sum_j exp(score_ij), in the dtype of the sums.
    """
    mine, lse = _attend(q, k, v)
    hub, lse_hub = _attend(q_hub, k_hub, v_hub)
    out = torch.stack((mine, phi * hub), 2).to(q.dtype)
    return out, hub.to(q.dtype).contiguous(), torch.stack((lse, lse_hub), 1)


def boosthub_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
) -> Gradients:
    """Gradients to q, k, v, q_hub, k_hub, v_hub (in their dtype) and phi, for grad [B, L, 2, H, D]."""
    dq, dk, dv, _ = _attend_backward(grad[:, :, 0], q, k, v)
    dq_hub, dk_hub, dv_hub, delta = _attend_backward(grad[:, :, 1], q_hub, k_hub, v_hub)
    own = [t.to(q.dtype).contiguous() for t in (dq, dk, dv)]
    hub = [(phi * t).to(q.dtype).contiguous() for t in (dq_hub, dk_hub, dv_hub)]
    return own[0], own[1], own[2], hub[0], hub[1], hub[2], delta.sum().to(phi.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A [B, L, H, D] and lse [B, H, L]."""
    q, k, v = _wide(q, k, v)
    scores = _scores(q, k)
    lse = scores.logsumexp(-1) / math.log(2)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v), lse


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dq, dk, dv without the factor, and delta [B, H, L]."""
    grad, q, k, v = _wide(grad, q, k, v)
    p = _scores(q, k).softmax(-1)
    dp = torch.einsum("bihd,bjhd->bhij", grad, v)
    delta = (p * dp).sum(-1)
    ds = p * (dp - delta[..., None]) / math.sqrt(q.shape[-1])
    dq = torch.einsum("bhij,bjhd->bihd", ds, k)
    dk = torch.einsum("bhij,bihd->bjhd", ds, q)
    return dq, dk, torch.einsum("bhij,bihd->bjhd", p, grad), delta


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
