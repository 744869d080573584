"""Codebook matching as called by the models."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fr_kernels.codebook import reference

# 4096 x 1024 fp32 distances are 16 MiB: one 512 px face at a time bounds the memory of any batch.
CHUNK = 4096


class NearestCode(NamedTuple):
    """Result of `nearest_code`."""

    codes: Tensor
    """[N, D], rows of the codebook, in its dtype."""
    indices: Tensor
    """int64 [N]."""


def nearest_code(features: Tensor, codebook: Tensor) -> NearestCode:
    """Nearest code of each feature by Euclidean distance (LAFR, section 3.2), ties to the lowest index.

    Args:
        features: [N, D] floating; distances are computed in float32 whatever the dtype.
        codebook: [K, D] floating.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(features, codebook)
    parts = [reference.nearest_index(part, codebook) for part in features.split(CHUNK)]
    index = torch.cat(parts)
    return NearestCode(codebook[index], index)


def soft_lookup(features: Tensor, codebook: Tensor, beta: float) -> NearestCode:
    """`nearest_code` with a gradient: forward hard, backward through softmax(-beta distance).

    The paper's differentiable argmin (LAFR, appendix) with its forward corrected from argmax to argmin; it
    passes the gradient to the code vector instead of to the index, because an index has no order (ours).

    Args:
        features: [N, D] floating.
        codebook: [K, D] floating.
        beta: inverse temperature, > 0, in 1 / squared distance.

    Raises:
        ValueError: shapes do not fit, or beta is not positive.
    """
    _check(features, codebook)
    if beta <= 0:
        raise ValueError(f"beta is {beta}; it must be > 0")
    codes, index = _SoftLookup.apply(features, codebook, beta)  # pyright: ignore[reportGeneralTypeIssues]
    return NearestCode(codes, index)


class _SoftLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, codebook: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        codes, index = nearest_code(features, codebook)
        ctx.save_for_backward(features, codebook)
        ctx.beta = beta
        ctx.mark_non_differentiable(index)
        return codes, index

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        features, codebook = ctx.saved_tensors
        book = codebook.float()
        to_features: list[Tensor] = []
        to_codebook = torch.zeros_like(book)
        for f, g in zip(features.split(CHUNK), grads[0].split(CHUNK), strict=True):
            df, dc = reference.soft_lookup_backward(g.float(), f.float(), book, ctx.beta)
            to_features.append(df.to(features.dtype))
            to_codebook += dc
        return torch.cat(to_features), to_codebook.to(codebook.dtype), None


def _check(features: Tensor, codebook: Tensor) -> None:
    if features.ndim != 2 or codebook.ndim != 2 or features.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and codebook {tuple(codebook.shape)}; "
            "expected [N, D] and [K, D] with the same D"
        )
