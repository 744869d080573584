"""What the tests of `sdfm_gate` share: arguments, and HDRFace's module as one would write it."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.sdfm_gate.op import SdfmWeights, sdfm_gate
from kernel_checks import (
    poisoned,
    within_budget,
)

# (B, N, C, H). B = 1: each product of the channel MLP has one row. The other is odd, with more tokens than a tile.
SIZES = [(1, 5, 32, 16), (2, 19, 24, 20)]


# More tile sums than one dot takes, more than one block of channels and more than one chunk of hidden units: in the
# forward alone, whose kernels have blocks of them.
MANY = (1, 130, 72, 72)


def shapes(width: int, units: int) -> dict[str, tuple[int, ...]]:
    return {
        "norm_weight": (width,),
        "norm_bias": (width,),
        "channel_w1": (units, 3 * width),
        "channel_b1": (units,),
        "channel_w2": (width, units),
        "channel_b2": (width,),
        "token_w1": (units, 3 * width),
        "token_b1": (units,),
        "token_w2": (1, units),
        "token_b2": (1,),
    }


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(
    size: tuple[int, int, int, int], dtype: torch.dtype, second: float = 1, seed: int = 0
) -> list[Tensor]:
    """f_sr, f_lr and the ten weights; `second` multiplies the MLPs' second layers."""
    batch, tokens, width, units = size
    scale = {"channel_w2": second, "token_w2": second, "norm_weight": 0.1}
    weights = {
        name: drawn(*shape, seed=seed + k)
        * scale.get(name, 1)
        / shape[-1] ** (0.5 * (len(shape) - 1))
        for k, (name, shape) in enumerate(shapes(width, units).items())
    }
    weights["norm_weight"] += 1
    features = drawn(2, batch, tokens, width, seed=seed + 10) * 2 + 0.5
    return [tensor.to(dtype).requires_grad_() for tensor in (*features, *weights.values())]


def eager(f_sr: Tensor, f_lr: Tensor, *weights: Tensor) -> Tensor:
    """HDRFace's module as one would write it: all in the features' dtype but the clamped gate."""
    w = SdfmWeights(*weights)
    a, b = (F.layer_norm(f, f.shape[-1:], w.norm_weight, w.norm_bias) for f in (f_sr, f_lr))
    d = (a - b).abs()
    pooled = torch.cat([x.mean(1, keepdim=True) for x in (a, b, d)], -1)
    hidden = F.silu(F.linear(pooled, w.channel_w1, w.channel_b1))
    channel = F.linear(hidden, w.channel_w2, w.channel_b2).sigmoid()
    hidden = F.silu(F.linear(torch.cat([a, b, d], -1), w.token_w1, w.token_b1))
    token = F.linear(hidden, w.token_w2, w.token_b2).sigmoid()
    wide = torch.promote_types(f_sr.dtype, torch.float32)
    gate = (token.to(wide) * channel.to(wide)).clamp(1e-6, 1 - 1e-6)
    return (gate * a + (1 - gate) * b).to(f_sr.dtype)


def op(*given: Tensor, impl: str = "triton") -> Tensor:
    return sdfm_gate(given[0], given[1], SdfmWeights(*given[2:]), impl=impl)


def with_gradients(function: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The output, then the gradient to each argument."""
    out = function(*given)
    grad = drawn(*out.shape, seed=11).to(given[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, given, grad)]


def in_double(given: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in given]


def grouped(results: Sequence[list[Tensor]]) -> list[Tensor]:
    """One tensor for each result of all draws; the small ones of one MLP, and the norm's, in one.

    token_b2 has one element: eager's error there may be zero by luck, which says nothing of the kernel's.
    """
    out, sr, lr, gamma, beta, cw1, cb1, cw2, cb2, tw1, tb1, tw2, tb2 = map(
        torch.stack, zip(*results, strict=True)
    )
    small = [(gamma, beta), (cb1, cb2), (tb1, tw2[:, 0], tb2)]
    return [out, sr, lr, cw1, cw2, tw1, *(torch.cat(tensors, 1) for tensors in small)]


def check_all(
    draws: Sequence[list[Tensor]], monkeypatch: pytest.MonkeyPatch, impl: str = "triton"
) -> None:
    """Forward and every gradient within the budget over all draws, on poisoned memory."""
    with poisoned(monkeypatch):
        got = [with_gradients(lambda *x: op(*x, impl=impl), given) for given in draws]
    for given, (_, *gradients) in zip(draws, got, strict=True):
        assert [g.shape for g in gradients] == [tensor.shape for tensor in given]
    peer = [with_gradients(eager, given) for given in draws]
    exact = [with_gradients(eager, in_double(given)) for given in draws]
    for mine, theirs, true in zip(*map(grouped, (got, peer, exact)), strict=True):
        within_budget(mine, theirs, true)
