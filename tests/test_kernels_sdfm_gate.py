"""sdfm_gate: HDRFace's feature gate, forward and every gradient, against float64."""

import pytest
import torch

from fr_kernels.sdfm_gate import reference, tiles, triton_impl
from fr_kernels.sdfm_gate.op import SdfmWeights
from kernel_checks import (
    DTYPES,
    poisoned,
    within_budget,
)
from sdfm_cases import MANY, SIZES, arguments, check_all, eager, in_double, op, with_gradients


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


def test_gradcheck() -> None:
    """Autograd of the formula, and the backward that the operator runs instead."""
    given = arguments((2, 3, 4, 3), torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: reference.sdfm_gate(x[0], x[1], SdfmWeights(*x[2:])), given
    )
    assert torch.autograd.gradcheck(lambda *x: op(*x, impl="reference"), given)
