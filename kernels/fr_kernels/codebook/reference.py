"""Plain torch version of codebook matching (LAFR, section 3.2), written for reading.

For features f [N, D] and codes C [K, D]:  d_nk = |c_k|^2 - 2 f_n . c_k  (|f_n|^2 does not change the
argmin), index_n = argmin_k d_nk with ties to the lowest k, out_n = c_index.
The gradient goes through the soft assignment w_nk = softmax_k(-beta d_nk), as if out_n = sum_k w_nk c_k.
"""

import torch
from torch import Tensor


def distances(features: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances less |f|^2: [N, D], [K, D] -> [N, K], float32 (float64 if the inputs are)."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, codebook = features.to(dtype), codebook.to(dtype)
    return torch.addmm(codebook.square().sum(1), features, codebook.mT, alpha=-2)


def nearest_index(features: Tensor, codebook: Tensor) -> Tensor:
    """The index of the nearest code, ties to the lowest: [N, D], [K, D] -> int64 [N]."""
    return distances(features, codebook).argmin(1)


def soft_lookup_backward(
    grad: Tensor, features: Tensor, codebook: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Gradients of sum_k w_nk c_k to features [N, D] and codebook [K, D], for grad [N, D]."""
    weights = (distances(features, codebook) * -beta).softmax(1)
    to_weights = grad @ codebook.mT
    to_logits = weights * (to_weights - (weights * to_weights).sum(1, keepdim=True))
    to_features = 2 * beta * (to_logits @ codebook)
    pull = to_logits.mT @ features - to_logits.sum(0)[:, None] * codebook
    return to_features, weights.mT @ grad + 2 * beta * pull
