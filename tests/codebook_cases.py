"""What the tests of `codebook` share: random features and codes, and the obvious code that is their peer."""

import torch
from torch import Tensor

from fr_kernels.codebook import reference
from fr_kernels.codebook.op import soft_lookup

IMPLS = ("reference", "triton")


# (N, K, D), odd on every side of a tile; one of everything.
SHAPES = [(1, 1, 1), (70, 50, 20), (97, 67, 40)]


MODES = ("embed", "index", "ste")


def data(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, offset: float = 0
) -> tuple[Tensor, Tensor]:
    n, k, d = shape
    generator = torch.Generator().manual_seed(n + k + d)
    features = torch.randn(n, d, generator=generator) + offset
    codebook = torch.randn(k, d, generator=generator) + offset
    return features.to(dtype).requires_grad_(), codebook.to(dtype).requires_grad_()


def exact_distances(features: Tensor, codebook: Tensor) -> Tensor:
    return reference.distances(features.detach().double(), codebook.detach().double())


def output(features: Tensor, codebook: Tensor, beta: float, mode: str, impl: str) -> Tensor:
    """What carries the gradient in this mode."""
    out = soft_lookup(features, codebook, beta, mode, impl=impl)  # pyright: ignore
    return out[0]


def naive(features: Tensor, codebook: Tensor, beta: float, mode: str) -> Tensor:
    """The obvious code in the dtype of its arguments, all in autograd."""
    d = torch.addmm(codebook.square().sum(1), features, codebook.mT, alpha=-2)
    if mode == "ste":
        codes = codebook[d.argmin(1)]
        return codes + (features - features.detach())
    weights = (-beta * d).softmax(1)
    if mode == "embed":
        return weights @ codebook
    return (weights * torch.arange(len(codebook), dtype=d.dtype)).sum(1)


def gradients(out: Tensor, grad: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, grad.to(out.dtype))
