"""sdfm_gate: HDRFace's feature gate, forward and every gradient, against float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.sdfm_gate import reference, tiles, triton_backward, triton_impl
from fr_kernels.sdfm_gate.op import SdfmWeights, sdfm_gate
from kernel_checks import (
    DTYPES,
    check_operator,
    compiles_whole,
    launches,
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


@pytest.mark.oldest
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_against_float64(
    size: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_all([arguments(size, dtype, seed=seed) for seed in (0, 100)], monkeypatch)


@pytest.mark.oldest
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_tiles(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [tensor.detach() for tensor in arguments(MANY, dtype)]
    with poisoned(monkeypatch):
        out = op(*given)
    within_budget(out, eager(*given), eager(*in_double(given)).detach())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_the_reference_against_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check_all([arguments(SIZES[1], dtype)], monkeypatch, impl="reference")


def test_the_settings_of_large_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one launches for many tokens, on few; in 16 bits, as float32 has one setting."""
    few, many = (
        {
            "statistics_settings": tiles.statistics_settings(tokens),
            "hidden_settings": tiles.hidden_settings(batch, tokens, 512, torch.float16),
            "blend_settings": tiles.blend_settings(tokens),
        }
        for batch, tokens in ((1, 201), (8, 1029))
    )
    for name, settings in many.items():
        assert settings != few[name]
        monkeypatch.setattr(triton_impl, name, lambda *_, settings=settings: settings)
    given = [tensor.detach() for tensor in arguments((2, 37, 40, 20), torch.float16)]
    with poisoned(monkeypatch):
        out = op(*given)
    within_budget(out, eager(*given), eager(*in_double(given)).detach())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_clamp_stops_the_gradient(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = [arguments((2, 7, 24, 20), dtype, second=20, seed=seed) for seed in (0, 100)]
    for given in draws:
        with torch.no_grad():
            given[-1] += 30
        _, state = reference.sdfm_gate_with_state(*given[:2], SdfmWeights(*given[2:]))
        gate = state.token_gate[..., None] * state.channel_gate[:, None]
        below, above = gate < 1e-6, gate > 1 - 1e-6
        assert below.any()
        assert above.any()
        assert not (below | above).all()
    check_all(draws, monkeypatch)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("high", [True, False])
def test_a_clamped_gate_is_its_bound(
    high: bool, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept stream is all zero once normalised, so the output is 1e-6 of the other; no MLP has a gradient."""
    given = arguments((2, 3, 24, 20), torch.float32)
    w = SdfmWeights(*given[2:])
    with torch.no_grad():
        for tensor in (w.norm_bias, w.channel_w2, w.token_w2):
            tensor.zero_()
        w.channel_b2.fill_(15.5)  # its sigmoid is 1 - 1.9e-7
        w.token_b2.fill_(15.5 if high else -15.5)
        given[0 if high else 1].fill_(3.0)
    check_all([given], monkeypatch, impl)
    out, *gradients = with_gradients(lambda *x: op(*x, impl=impl), given)
    assert 1e-6 < out.abs().max() < 5e-6
    assert not any(gradient.any() for gradient in gradients[4:])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_equal_features(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """|a - b| has no slope at 0, as torch.abs."""
    given = arguments((2, 5, 24, 20), torch.float32)
    with torch.no_grad():
        given[1][0, :2] = given[0][0, :2]
    check_all([given], monkeypatch, impl)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_features(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near float16's largest value, near its smallest, and tokens without variance."""
    given = arguments((2, 6, 24, 20), dtype)
    with torch.no_grad():
        given[0][0] *= 6000
        given[1][0] /= 10000
        given[0][1, 0], given[1][1, 1], given[1][1, 2] = 60000, 0, -3
    check_all([given], monkeypatch)


def test_each_image_alone() -> None:
    given = arguments((3, 11, 24, 20), torch.float16)
    together = op(*given)
    for image in range(3):
        alone = op(given[0][image : image + 1], given[1][image : image + 1], *given[2:])
        assert torch.equal(alone[0], together[image])


def test_two_runs_give_the_same_bits() -> None:
    given = arguments((1, 17, 24, 20), torch.float16)
    for one, two in zip(with_gradients(op, given), with_gradients(op, given), strict=True):
        assert torch.equal(one, two)


def test_any_strides() -> None:
    given = [tensor.detach() for tensor in arguments((2, 5, 24, 20), torch.float32)]
    turned = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in given]
    assert not turned[0].is_contiguous()
    turned = [tensor.requires_grad_() for tensor in turned]
    plain = with_gradients(op, [tensor.requires_grad_() for tensor in given])
    for one, two in zip(with_gradients(op, turned), plain, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_empty_batch(impl: str) -> None:
    given = arguments((0, 3, 24, 20), torch.float32)
    out = op(*given, impl=impl)
    assert out.shape == (0, 3, 24)
    gradients = torch.autograd.grad(out.sum(), given)
    assert all(not gradient.any() for gradient in gradients)


def test_gradcheck() -> None:
    """Autograd of the formula, and the backward that the operator runs instead."""
    given = arguments((2, 3, 4, 3), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: reference.sdfm_gate(x[0], x[1], SdfmWeights(*x[2:])), given
    )
    assert torch.autograd.gradcheck(lambda *x: op(*x, impl="reference"), given)


def test_the_paper_size() -> None:
    """3,674,625 parameters (the public checkpoint), and no tensor of 3C columns kept for the backward."""
    with torch.device("meta"):
        weights = SdfmWeights(*(torch.empty(shape) for shape in shapes(1024, 512).values()))
        weights = SdfmWeights(*(tensor.requires_grad_() for tensor in weights))
        features = torch.empty(2, 1, 201, 1024)
    assert sum(tensor.numel() for tensor in weights) == 3_674_625
    kept: list[Tensor] = []
    counter = FlopCounterMode(display=False)
    with (
        counter,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        out = sdfm_gate(features[0], features[1], weights, impl="reference")
    token, channel = 201 * (3 * 1024 * 512 + 512), 3 * 1024 * 512 + 512 * 1024
    assert counter.get_total_flops() == 2 * (token + channel)
    extra = sum(t.numel() for t in kept) - sum(t.numel() for t in (*features, *weights))
    assert extra == 5 * 201 + 1024 + 512
    counter = FlopCounterMode(display=False)
    with counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * (3 * token + 2 * channel)


def test_operator_contract() -> None:
    for dtype in (*DTYPES, torch.bfloat16, torch.float64):
        f_sr, f_lr, *weights = arguments((2, 3, 8, 4), dtype)
        forward = torch.ops.fr_kernels.sdfm_gate
        check_operator(forward, f_sr, f_lr, weights, "reference")
    state = [tensor.detach() for tensor in forward(f_sr, f_lr, weights, "reference")[1:]]
    given = [tensor.detach() for tensor in (f_sr, f_sr, f_lr)]
    plain = [tensor.detach() for tensor in weights]
    backward = torch.ops.fr_kernels.sdfm_gate_backward
    check_operator(backward, *given, plain, state, "reference")
    out = compiles_whole(sdfm_gate, f_sr, f_lr, SdfmWeights(*weights))
    assert torch.equal(out, reference.sdfm_gate(f_sr, f_lr, SdfmWeights(*weights)))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_fake_promises_what_is_returned(impl: str) -> None:
    """Of tensors with any strides too, which opcheck does not give."""
    ops = torch.ops.fr_kernels
    given = [tensor.detach() for tensor in arguments((2, 5, 24, 20), torch.float16)]
    given = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in given]

    def results(f_sr: Tensor, f_lr: Tensor, *weights: Tensor) -> list[Tensor]:
        out, *state = ops.sdfm_gate(f_sr, f_lr, weights, impl)
        backward = ops.sdfm_gate_backward(f_sr, f_sr, f_lr, weights, state, impl)
        return [out, *state, *backward]

    fake = results(*(tensor.to("meta") for tensor in given))
    for one, two in zip(results(*given), fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (two.shape, two.dtype, two.stride())


@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_are_the_declared_ones(dtype: torch.dtype) -> None:
    f_sr, f_lr, *weights = (tensor.detach() for tensor in arguments(SIZES[0], dtype))
    made = launches(lambda: triton_impl.sdfm_gate(f_sr, f_lr, weights))
    assert len(made) == declared_launches("sdfm_gate", f_sr, f_lr, weights)
    _, state = triton_impl.sdfm_gate(f_sr, f_lr, weights)
    given = (f_sr, f_sr, f_lr, weights, state)
    made = launches(lambda: triton_backward.sdfm_gate_backward(*given))
    assert len(made) == declared_launches("sdfm_gate_backward", *given)


def test_autocast_changes_nothing() -> None:
    given = arguments(SIZES[0], torch.float32)
    plain = with_gradients(op, given)
    with torch.autocast("cpu", torch.bfloat16):
        under = with_gradients(op, given)
    for one, two in zip(plain, under, strict=True):
        assert torch.equal(one, two)


def test_wrong_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    f_sr, f_lr, *rest = (tensor.detach() for tensor in arguments(SIZES[0], torch.float32))
    weights = SdfmWeights(*rest)
    with pytest.raises(ValueError, match=r"f_sr is \(5, 32\); expected \[B, N, C\]"):
        sdfm_gate(f_sr[0], f_lr[0], weights)
    with pytest.raises(ValueError, match=r"f_sr is \(1, 0, 32\)"):
        sdfm_gate(f_sr[:, :0], f_lr[:, :0], weights)
    with pytest.raises(ValueError, match=r"f_lr is \(1, 4, 32\); expected f_sr's \(1, 5, 32\)"):
        sdfm_gate(f_sr, f_lr[:, :4], weights)
    with pytest.raises(ValueError, match=r"token_w1 is \(16, 95\); expected \(16, 96\)"):
        sdfm_gate(f_sr, f_lr, weights._replace(token_w1=weights.token_w1[:, 1:]))
    with pytest.raises(
        ValueError, match=r"token_b2 is torch\.float16; expected f_sr's torch\.float32"
    ):
        sdfm_gate(f_sr, f_lr, weights._replace(token_b2=weights.token_b2.half()))
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        sdfm_gate(f_sr, f_lr, weights, impl="cuda")
    double = SdfmWeights(*(tensor.double() for tensor in weights))
    with pytest.raises(KernelUnavailableError, match=r"do not compute in torch\.float64"):
        sdfm_gate(f_sr.double(), f_lr.double(), double, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        sdfm_gate(f_sr, f_lr, weights, impl="triton")
