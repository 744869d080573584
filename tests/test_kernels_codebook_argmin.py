"""differentiable_argmin: the paper's interface with its forward corrected, gradients against float64."""

import pytest
import torch
from torch import Tensor

from fr_kernels.codebook import reference, triton_argmin
from fr_kernels.codebook.argmin import differentiable_argmin
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from kernel_checks import (
    DTYPES,
    WITHOUT_DOT,
    check_operator,
    compiles_whole,
    launches,
    poisoned,
    within_budget,
)

IMPLS = ("reference", "triton")


def data(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (4 * torch.rand(shape, generator=generator)).to(dtype)


def naive(x: Tensor, beta: float) -> Tensor:
    steps = torch.arange(x.shape[-1], dtype=x.dtype)
    return ((-beta * x).softmax(-1) * steps).sum(-1)


@pytest.mark.oldest
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
@pytest.mark.parametrize("shape", [(1, 1), (5, 37), (2, 3, 130), (3, 1100)])
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("hard", [True, False])
def test_value_and_gradient(
    hard: bool,
    impl: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = data(*shape, dtype=dtype).requires_grad_()
    grad = data(*shape[:-1], dtype=dtype)
    with poisoned(monkeypatch):
        out = differentiable_argmin(x, -1, beta=2.0, straight_through=hard, impl=impl)
        (got,) = torch.autograd.grad(out.value, x, grad)
    assert torch.equal(out.indices, x.detach().argmin(-1).int())
    wide = x.detach().double().requires_grad_()
    exact, eager = naive(wide, 2.0), naive(x, 2.0)
    if hard:
        assert torch.equal(out.value, out.indices.to(dtype))
    else:
        within_budget(out.value.detach(), eager.detach(), exact.detach())
    truth = torch.autograd.grad(exact, wide, grad.double())[0]
    within_budget(got, torch.autograd.grad(eager, x, grad)[0], truth)
    again = differentiable_argmin(x, -1, beta=2.0, straight_through=hard, impl=impl)
    assert torch.equal(torch.autograd.grad(again.value, x, grad)[0], got)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("keepdim", [False, True])
def test_dimensions_are_those_of_torch_argmin(impl: str, keepdim: bool) -> None:
    x = data(3, 4, 5)
    for given in (x, x.permute(2, 0, 1), x[:, ::2]):
        for dim in (None, 0, 1, 2, -1, -3):
            got = differentiable_argmin(given, dim, keepdim, impl=impl)
            expected = given.argmin(dim, keepdim=keepdim)
            assert torch.equal(got.indices.long(), expected)
            assert torch.equal(got.value, expected.float())
    scalar = torch.tensor(2.0, requires_grad=True)
    assert differentiable_argmin(scalar, 0, impl=impl).value.shape == ()
    flat = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(differentiable_argmin(flat, impl=impl).value, flat)
    wide = x.double().requires_grad_()
    (truth,) = torch.autograd.grad(naive(wide.flatten(), 1.0), wide)
    assert (gradient - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_infinities_and_shifts(impl: str) -> None:
    """Ties go to the lowest; an infinite element has no weight; what all elements share changes nothing."""
    assert differentiable_argmin(torch.tensor([3.0, 1, 2, 1]), impl=impl).indices == 1
    x = data(6, 1300)
    x[:, :1100] = float("inf")  # a whole tile of them
    x.requires_grad_()
    out = differentiable_argmin(x, 1, beta=0.5, straight_through=False, impl=impl)
    (gradient,) = torch.autograd.grad(out.value.sum(), x)
    assert torch.equal(out.indices, x.detach().argmin(1).int())
    assert gradient.isfinite().all()
    assert gradient[:, :1100].eq(0).all()
    assert gradient.double().sum(1).abs().max() <= 1e-6 * gradient.abs().sum()
    moved = (x.detach() + 8).requires_grad_()
    shifted = differentiable_argmin(moved, 1, beta=0.5, impl=impl)
    (other,) = torch.autograd.grad(shifted.value.sum(), moved)
    assert (other - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_sharp_weights_keep_a_relative_gradient() -> None:
    """Where w is one-hot up to e^-17, k - s of the winner is 1e-5: counted from it, not a difference of indices."""
    x = torch.full((1, 1000), 100.0)
    x[0, 3], x[0, 700] = 0.0, 17.0
    wide = x.double().requires_grad_()
    (truth,) = torch.autograd.grad(naive(wide, 1.0), wide)
    for impl in IMPLS:
        y = x.clone().requires_grad_()
        (got,) = torch.autograd.grad(differentiable_argmin(y, 1, impl=impl).value, y)
        assert (got - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_bfloat16_rounds_the_value_and_not_the_index() -> None:
    x = torch.ones(1024, 1024, dtype=torch.bfloat16) - torch.eye(1024, dtype=torch.bfloat16)
    value, index = differentiable_argmin(x, 1)
    assert torch.equal(index, torch.arange(1024, dtype=torch.int32))
    assert int((value.int() != index).sum()) == 512


def test_gradcheck_and_the_explicit_backward() -> None:
    x = data(4, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: differentiable_argmin(x, 1, straight_through=False).value, (x,)
    )
    assert torch.autograd.gradcheck(lambda x: reference.soft_index(x, 1.0), (x,))


def test_operator_contract() -> None:
    for dtype in (*DTYPES, torch.bfloat16, torch.float64):
        for x in (data(7, dtype=dtype), data(3, 7, dtype=dtype).T):
            args = (x.requires_grad_(), 0.5, dtype == torch.float32, "reference")
            check_operator(torch.ops.fr_kernels.differentiable_argmin, *args)
    backward = torch.ops.fr_kernels.differentiable_argmin_backward
    check_operator(backward, data(3), data(3, 7), 0.5, "reference")

    def whole(x: Tensor) -> Tensor:
        return differentiable_argmin(x, 0, True).value

    assert torch.equal(compiles_whole(whole, data(4, 3)), whole(data(4, 3)))


def test_launches_are_the_declared_ones() -> None:
    x, grad = data(5, 20), data(5)
    made = launches(lambda: triton_argmin.differentiable_argmin(x, 1.0, True))
    assert len(made) == declared_launches("differentiable_argmin")
    made = launches(lambda: triton_argmin.differentiable_argmin_backward(grad, x, 1.0))
    assert len(made) == declared_launches("differentiable_argmin_backward")


def test_empty_batch_and_wrong_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for impl in IMPLS:
        x = torch.zeros(0, 4, requires_grad=True)
        out = differentiable_argmin(x, 1, impl=impl)
        assert out.value.shape == out.indices.shape == (0,)
        assert torch.autograd.grad(out.value.sum(), x)[0].shape == (0, 4)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="the argmin of nothing"):
        differentiable_argmin(torch.zeros(2, 0), 1)
    with pytest.raises(ValueError, match="dim is 2; allowed for 2 dimensions"):
        differentiable_argmin(x, 2)
    with pytest.raises(ValueError, match="beta is -1"):
        differentiable_argmin(x, beta=-1)
    with pytest.raises(ValueError, match="int64"):
        differentiable_argmin(x.long())
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        differentiable_argmin(x, impl="cuda")
    with pytest.raises(KernelUnavailableError, match="float64"):
        differentiable_argmin(x.double(), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        differentiable_argmin(x, impl="triton")
