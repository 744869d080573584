"""layer_norm: values and every gradient against float64, beside eager torch in the same dtype; the contract."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels import layer_norm
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.launch import Settings
from fr_kernels.layer_norm import triton_backward, triton_impl
from kernel_checks import (
    DTYPES,
    WITHOUT_DOT,
    all_within_budget,
    check_operator,
    compiles_whole,
    launches,
    poisoned,
    results,
    strided,
)

EPS = 1e-5
IMPLS = ("reference", "triton")
CASES = [
    ((3, 5, 24), "residual bias"),
    ((2, 3, 320), "bias"),
    ((33, 70), "residual"),  # three tiles of rows
    ((2, 1280), ""),
    ((5, 2048), "residual bias"),
    ((7, 1), "residual bias"),
    ((12,), "bias"),
]


def inputs_of(shape: tuple[int, ...], added: str, dtype: torch.dtype) -> list[Tensor]:
    """x, and what is added to it."""
    torch.manual_seed(0)
    shapes = [shape, *([shape] * ("residual" in added)), *([shape[-1:]] * ("bias" in added))]
    return [torch.randn(size).to(dtype) for size in shapes]


def ours(added: str, impl: str) -> Callable[..., tuple[Tensor, ...]]:
    """The op on such inputs; without anything added its h is x, and only y counts."""

    def call(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(added.split(), rest, strict=True))
        y, h = layer_norm(x, **named, eps=EPS, impl=impl)
        return (y, h) if rest else (y,)

    return call


def eager(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """What one would write."""
    h = x
    for tensor in rest:
        h = h + tensor
    y = F.layer_norm(h, h.shape[-1:], eps=EPS)
    return (y, h) if rest else (y,)


@pytest.mark.oldest
@pytest.mark.parametrize(("shape", "added"), CASES)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_values_and_gradients_are_within_the_error_budget(
    shape: tuple[int, ...], added: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(shape, added, dtype)
    with poisoned(monkeypatch):
        got = results(ours(added, "triton"), inputs)
    all_within_budget(got, eager, inputs)
    all_within_budget(results(ours(added, "reference"), inputs), eager, inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [100.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float, dtype: torch.dtype) -> None:
    """Where E[x^2] - E[x]^2 would lose all of them."""
    inputs = [inputs_of((9, 100), "", dtype)[0] + mean]
    for impl in IMPLS:
        all_within_budget(results(ours("", impl), inputs), eager, inputs)


def test_what_rounding_takes_from_the_mean_is_not_lost() -> None:
    """A mean of 1009 1/6, which float32 misses by 2e-5; the peer gets the same row around 0."""
    around_0 = [torch.tensor([[0.0, 1.0, 4.0, 9.0, 16.0, 25.0]])]
    shifted = [around_0[0] + 1000]
    for impl in IMPLS:
        all_within_budget(results(ours("", impl), shifted), eager, around_0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype: torch.dtype) -> None:
    """A constant row (variance 0), one number that outweighs all others, the largest and the smallest of float16."""
    x = torch.randn(5, 40)
    x[0], x[1, 7], x[2], x[3] = 7.3, 6e4, 6e-8, 6e4
    x[3, ::2] = -6e4
    inputs = [x.to(dtype)]
    got = results(ours("", "triton"), inputs)
    assert all(t.isfinite().all() for t in got)
    all_within_budget(got, eager, inputs)
    assert got[0][0].abs().max() <= 1e-4


@pytest.mark.oldest
def test_the_bias_gradient_sums_many_tiles_in_several_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small limits in place of many rows: ten tiles of 16 rows, four a program, and two sums at a time."""
    monkeypatch.setattr(triton_backward, "TILES", 4)
    small = Settings({"ROWS": 2, "CHANNELS": 16})
    monkeypatch.setattr(triton_backward, "SUM", small)
    inputs = inputs_of((150, 24), "residual bias", torch.float32)
    with poisoned(monkeypatch):
        got = results(ours("residual bias", "triton"), inputs)
    all_within_budget(got, eager, inputs)


def test_h_is_the_sum_rounded_once_in_every_implementation() -> None:
    x, residual, bias = inputs_of((6, 40), "residual bias", torch.float16)
    exact = (x.double() + residual.double() + bias.double()).half()
    for impl in IMPLS:
        y, h = layer_norm(x, residual=residual, bias=bias, impl=impl)
        assert torch.equal(h, exact)
        # What is normalised is the rounded sum, which backward reads.
        assert torch.equal(layer_norm(h, impl=impl).y, y)
        assert layer_norm(x, impl=impl).h is x
        wide = layer_norm(x, residual=residual, bias=bias.float(), impl=impl)
        assert torch.equal(wide.h, exact)


@pytest.mark.parametrize("added", ["", "residual bias"])
def test_strides_and_runs_do_not_matter(added: str) -> None:
    """Bit for bit in the kernels; torch's means add in the order that the strides suggest."""
    inputs = inputs_of((3, 5, 24), added, torch.float32)
    spread = [strided(t) for t in inputs]
    expected = results(ours(added, "triton"), inputs)
    for given in (inputs, spread):
        for one, other in zip(results(ours(added, "triton"), given), expected, strict=True):
            assert torch.equal(one, other)
    all_within_budget(results(ours(added, "reference"), spread), eager, inputs)
    for impl in IMPLS:
        assert all(t.is_contiguous() for t in ours(added, impl)(*spread))


@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_through_one_output_alone(impl: str) -> None:
    inputs = inputs_of((4, 6), "residual bias", torch.float32)
    leaves = [t.requires_grad_() for t in inputs]
    y, h = ours("residual bias", impl)(*leaves)
    ones = torch.ones(4, 6)
    through_h = torch.autograd.grad(h, leaves, ones, retain_graph=True)
    for one, other in zip(through_h, (ones, ones, torch.full((6,), 4.0)), strict=True):
        assert torch.equal(one, other)
    steps = torch.arange(24.0).view(4, 6) % 5
    through_y = torch.autograd.grad(y, leaves, steps)
    plain = torch.autograd.grad(eager(*leaves)[0], leaves, steps)
    for one, other in zip(through_y, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("added", ["", "residual bias"])
def test_the_backward_formula_is_the_derivative(added: str) -> None:
    inputs = inputs_of((3, 4), added, torch.float64)
    leaves = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(ours(added, "reference"), leaves)


@pytest.mark.parametrize("dtype", [*WITHOUT_DOT, torch.float64])
def test_operator_contract(dtype: torch.dtype) -> None:
    x, residual, bias = (t.requires_grad_() for t in inputs_of((2, 3, 8), "residual bias", dtype))
    for given in ((x, residual, bias), (x, None, None), (x, None, bias)):
        check_operator(torch.ops.fr_kernels.layer_norm, *given, EPS, "reference")
    x, residual, bias = (t.detach() for t in (x, residual, bias))
    for given in ((x, x, bias, residual), (x, x, None, None)):
        check_operator(torch.ops.fr_kernels.layer_norm_backward, *given, EPS, "reference")


@pytest.mark.parametrize("added", ["", "residual bias"])
def test_it_compiles_whole(added: str) -> None:
    inputs = [t.requires_grad_() for t in inputs_of((3, 5, 8), added, torch.float32)]
    compiled = compiles_whole(ours(added, "auto"), *inputs)
    for one, other in zip(compiled, ours(added, "reference")(*inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("residual", "bias"), [(False, False), (True, False), (True, True)])
def test_launches_are_the_declared_ones(residual: bool, bias: bool) -> None:
    x, other, b = inputs_of((9, 40), "residual bias", torch.float16)
    given = (x, other if residual else None, b if bias else None, EPS)
    made = launches(lambda: triton_impl.layer_norm(*given))
    assert len(made) == declared_launches("layer_norm", *given) == 1
    given = (x, x, b if bias else None, other if residual else None, EPS)
    made = launches(lambda: triton_backward.layer_norm_backward(*given))
    assert len(made) == declared_launches("layer_norm_backward", *given) == 1 + bias


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl: str) -> None:
    inputs = inputs_of((0, 3, 8), "residual bias", torch.float32)
    got = results(ours("residual bias", impl), inputs)
    assert [t.shape for t in got] == [t.shape for t in (inputs[0], inputs[0], *inputs)]
    assert torch.equal(got[-1], torch.zeros(8))


def test_wrong_calls() -> None:
    x = torch.zeros(2, 8)
    wrong = [
        ("x is () torch.float32; expected [..., C]", (x[0, 0],), {}),
        ("x is (2, 0) torch.float32", (x[:, :0],), {}),
        ("x is (2, 8) torch.int64", (x.long(),), {}),
        ("expected (2, 8) torch.float32 as x", (x,), {"residual": x.half()}),
        ("residual is (8,)", (x,), {"residual": x[0]}),
        ("bias is (2, 8) torch.float32; expected [8]", (x,), {"bias": x}),
        ("bias is (8,) torch.int64", (x,), {"bias": x[0].long()}),
        ("eps is 0.0; it must be > 0", (x,), {"eps": 0.0}),
        ("allowed: 'auto', 'reference', 'triton'", (x,), {"impl": "cuda"}),
    ]
    for message, given, named in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            layer_norm(*given, **named)


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 2049)
    with pytest.raises(KernelUnavailableError, match="rows of at most 2048, not 2049"):
        layer_norm(x, impl="triton")
    all_within_budget(results(ours("", "auto"), [x]), eager, [x])
    with pytest.raises(KernelUnavailableError, match="do not compute in float64"):
        layer_norm(x[:, :8].double(), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        layer_norm(x[:, :8], impl="triton")
