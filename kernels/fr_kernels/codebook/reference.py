"""Plain torch version of codebook matching (LAFR, section 3.2 and appendix A.2.2), written for reading.

Features f [N, D], codes C [K, D]. Distances, weights and sums are float32 (float64 if an input is).

    d_nk    = |c_k|^2 - 2 f_n . c_k            squared distance less |f_n|^2, which changes neither i nor w
    i_n     = argmin_k d_nk                    ties to the lowest k
    w_nk    = softmax_k(-beta d_nk)            the soft assignment: what the gradients go through
    soft code   = sum_k w_nk c_k               mode "embed"
    soft index  s_n = sum_k w_nk k             mode "index"

Kept for the backward, beside f and C: i_n and `stats` [2 or 3, N], one row each:

    best_n = min_k d_nk    total_n = sum_k exp(beta (best_n - d_nk))    lead_n = s_n - i_n    (mode "index")

With a_nk = g_n . c_k, t_n = sum_k w_nk a_nk ("embed") or a_nk = g_n (k - i_n), t_n = g_n lead_n ("index"),
every row of p_nk = 2 beta w_nk (a_nk - t_n) sums to zero, and

    df_n = sum_k p_nk (c_k - f_n)      dC_k = sum_n p_nk (f_n - c_k)  [+ sum_n w_nk g_n in "embed"]
"""

import torch
from torch import Tensor

# 4096 x 1024 float32 distances are 16 MiB: one 512 px face at a time bounds the memory of any batch.
CHUNK = 4096


def distances(features: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances less |f|^2: [N, D], [K, D] -> [N, K], float32 (float64 if an input is)."""
    dtype = _wide(features, codebook)
    features, codebook = features.to(dtype), codebook.to(dtype)
    return torch.addmm(codebook.square().sum(1), features, codebook.mT, alpha=-2)


def nearest_index(features: Tensor, codebook: Tensor) -> Tensor:
    """The index of the nearest code, ties to the lowest: [N, D], [K, D] -> int32 [N]."""
    return _less_nan(distances(features, codebook)).argmin(1).int()


def nearest_code(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, D] and their indices int32 [N]."""
    index = torch.cat([nearest_index(part, codebook) for part in features.split(CHUNK)])
    return codebook[index], index


def nearest_code_backward(grad: Tensor, index: Tensor, codebook: Tensor) -> Tensor:
    """Gradient to the codebook: each code gets the sum of `grad` [N, D] over the features that chose it."""
    out = torch.zeros(codebook.shape, dtype=_wide(grad, codebook), device=grad.device)
    return out.index_add_(0, index, grad.to(out.dtype)).to(codebook.dtype)


def soft_lookup(
    features: Tensor, codebook: Tensor, beta: float, indexed: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [N, D], index int32 [N], the index as a float [N] (empty unless `indexed`), stats [2 or 3, N]."""
    parts = [_soft_lookup(part, codebook, beta, indexed) for part in features.split(CHUNK)]
    index = torch.cat([index for index, _ in parts])
    stats = torch.cat([stats for _, stats in parts], 1)
    return codebook[index], index, index.to(stats.dtype) if indexed else stats.new_empty(0), stats


def _soft_lookup(
    features: Tensor, codebook: Tensor, beta: float, indexed: bool
) -> tuple[Tensor, Tensor]:
    d = _less_nan(distances(features, codebook))
    index = d.argmin(1, keepdim=True)
    best = d.gather(1, index)
    parts = (beta * (best - d)).exp()
    total = parts.sum(1)
    stats = [best[:, 0], total]
    if indexed:
        steps = torch.arange(len(codebook), device=d.device) - index
        stats.append((parts * steps).sum(1) / total)
    return index[:, 0].int(), torch.stack(stats)


def soft_lookup_backward(
    grad: Tensor,
    features: Tensor,
    codebook: Tensor,
    index: Tensor,
    stats: Tensor,
    beta: float,
    indexed: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to features and codebook, for `grad` [N, D] of the soft code or [N] of the soft index."""
    dtype = stats.dtype
    book = codebook.to(dtype)
    to_features, to_codebook = [], torch.zeros_like(book)
    parts = (grad.split(CHUNK), features.split(CHUNK), index.split(CHUNK), stats.split(CHUNK, 1))
    for g, f, i, stat in zip(*parts, strict=True):
        g, f = g.to(dtype), f.to(dtype)
        weights = (beta * (stat[0][:, None] - distances(f, book))).clamp(max=0).exp()
        weights = weights / stat[1][:, None]
        if indexed:
            steps = torch.arange(len(book), device=g.device) - i[:, None]
            pull = 2 * beta * weights * (steps - stat[2][:, None]) * g[:, None]
        else:
            to_weights = g @ book.mT
            pull = to_weights - (weights * to_weights).sum(1, keepdim=True)
            pull = 2 * beta * weights * pull
            to_codebook += weights.mT @ g
        to_features.append(pull @ book - pull.sum(1, keepdim=True) * f)
        to_codebook += pull.mT @ f - pull.sum(0)[:, None] * book
    return torch.cat(to_features).to(features.dtype), to_codebook.to(codebook.dtype)


def soft_code(features: Tensor, codebook: Tensor, beta: float) -> Tensor:
    """sum_k w_nk c_k, all in autograd: [N, D]. What mode "embed" differentiates."""
    weights = (distances(features, codebook) * -beta).softmax(1)
    return weights @ codebook.to(weights.dtype)


def soft_index(x: Tensor, beta: float) -> Tensor:
    """sum_k w_k k with w = softmax(-beta x) over the last dimension, all in autograd."""
    steps = torch.arange(
        x.shape[-1], device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    return ((x.to(steps.dtype) * -beta).softmax(-1) * steps).sum(-1)


def differentiable_argmin(x: Tensor, beta: float, hard: bool) -> tuple[Tensor, Tensor]:
    """Over the last dimension: the index (hard) or the soft index, in the dtype of `x`; and the int32 index."""
    index = x.argmin(-1).int().contiguous()
    value = index if hard else soft_index(x, beta)
    return value.to(x.dtype).contiguous(), index


def differentiable_argmin_backward(grad: Tensor, x: Tensor, beta: float) -> Tensor:
    """Gradient of the soft index: g (-beta) w_k (k - s); `grad` has the shape of `x` without its last dimension.

    k - s is computed as (k - i) - (s - i), i the argmin: whole numbers less a small one, where w is nearly one-hot.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights = (x.to(dtype) * -beta).softmax(-1)
    steps = torch.arange(x.shape[-1], device=x.device) - x.argmin(-1, keepdim=True)
    lead = (weights * steps).sum(-1, keepdim=True)
    out = grad[..., None].to(dtype) * -beta * weights * (steps - lead)
    return out.to(x.dtype).contiguous()


def _less_nan(d: Tensor) -> Tensor:
    """NaN as infinity, so that it is never the least."""
    return d.masked_fill_(d.isnan(), float("inf"))


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
