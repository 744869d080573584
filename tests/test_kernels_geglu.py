"""geglu: values and gradients against float64, beside eager torch in the same dtype; the contract."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from torch import Tensor

from fr_kernels import geglu
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.geglu import triton_impl
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

IMPLS = ("reference", "triton")
# The last: two tiles of rows and three of columns, none of them full.
SHAPES = [(2,), (3, 5, 24), (1, 640), (2, 3, 514), (13, 1210)]


def eager(x: Tensor) -> Tensor:
    """What one would write."""
    value, gate = x.chunk(2, -1)
    return value * F.gelu(gate)


def ours(impl: str) -> partial[Tensor]:
    return partial(geglu, impl=impl)


@pytest.mark.oldest
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_values_and_gradients_are_within_the_error_budget(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    inputs = [(2 * torch.randn(shape)).to(dtype)]
    with poisoned(monkeypatch):
        got = results(ours("triton"), inputs)
    all_within_budget(got, eager, inputs)
    all_within_budget(results(ours("reference"), inputs), eager, inputs)


def test_it_is_diffusers_layer_behind_the_linear_one() -> None:
    layer = GEGLU(6, 10)
    x = torch.randn(4, 6)
    for impl in IMPLS:
        assert (geglu(layer.proj(x), impl=impl) - layer(x)).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_extreme_values(dtype: torch.dtype, impl: str) -> None:
    """Both flat ends of the gate, both zeros, the least and the largest numbers of float16."""
    gate = torch.tensor([6e4, -6e4, 9.0, -9.0, 5.5, -5.5, 0.0, -0.0, 6e-8, -6e-8, -1e-3])
    value = torch.tensor([1.0, 6e4, -6e3, 1.0, -1.0, 1e4, 3.0, -3.0, 2e4, 1.0, -7.0])
    inputs = [torch.cat([value, gate]).to(dtype)]
    got = results(ours(impl), inputs)
    assert all(t.isfinite().all() for t in got)
    all_within_budget(got, eager, inputs)
    y = got[0]
    assert y[0] == gate.to(dtype)[0]
    assert y[1] == 0


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply")  # what the test is about
def test_a_gate_that_float32_cannot_square_has_finite_gradients() -> None:
    x = torch.tensor([2.0, 2.0, 1e30, -1e30])
    for impl in IMPLS:
        _, dx = results(ours(impl), [x])
        assert dx.isfinite().all()
        assert dx[1] == dx[3] == 0


@pytest.mark.parametrize("shape", [(3, 5, 24), (13, 1210)])
def test_strides_and_runs_do_not_matter(shape: tuple[int, ...]) -> None:
    """Bit for bit in the kernels; torch's vectors and their ends differ in the last bit."""
    inputs = [torch.randn(shape)]
    spread = [strided(inputs[0])]
    expected = results(ours("triton"), inputs)
    for given in (inputs, spread):
        for one, other in zip(results(ours("triton"), given), expected, strict=True):
            assert torch.equal(one, other)
    all_within_budget(results(ours("reference"), spread), eager, inputs)
    for impl in IMPLS:
        assert geglu(spread[0], impl=impl).is_contiguous()


def test_the_backward_formula_is_the_derivative() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours("reference"), [x])


@pytest.mark.parametrize("dtype", [*WITHOUT_DOT, torch.float64])
def test_operator_contract(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8).to(dtype)
    check_operator(torch.ops.fr_kernels.geglu, x.requires_grad_(), "reference")
    x, grad = x.detach(), torch.randn(2, 3, 4).to(dtype)
    check_operator(torch.ops.fr_kernels.geglu_backward, grad, x, "reference")


def test_it_compiles_whole() -> None:
    x = torch.randn(3, 5, 8, requires_grad=True)
    assert torch.equal(compiles_whole(geglu, x), geglu(x, impl="reference"))


def test_launches_are_the_declared_ones() -> None:
    x, grad = torch.randn(9, 40).half(), torch.randn(9, 20).half()
    made = launches(lambda: triton_impl.geglu(x))
    assert len(made) == declared_launches("geglu", x) == 1
    made = launches(lambda: triton_impl.geglu_backward(grad, x))
    assert len(made) == declared_launches("geglu_backward", grad, x) == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows(impl: str) -> None:
    y, dx = results(ours(impl), [torch.zeros(0, 3, 8)])
    assert (y.shape, dx.shape) == ((0, 3, 4), (0, 3, 8))


def test_wrong_calls() -> None:
    x = torch.zeros(2, 8)
    wrong = [
        ("x is () torch.float32; expected [..., 2D]", x[0, 0], "auto"),
        ("x is (2, 7) torch.float32", x[:, :7], "auto"),
        ("x is (2, 0) torch.float32", x[:, :0], "auto"),
        ("x is (2, 8) torch.int64; expected [..., 2D], floating", x.long(), "auto"),
        ("allowed: 'auto', 'reference', 'triton'", x, "cuda"),
    ]
    for message, given, impl in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            geglu(given, impl=impl)


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8)
    with pytest.raises(KernelUnavailableError, match="do not compute in float64"):
        geglu(x.double(), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        geglu(x, impl="triton")
