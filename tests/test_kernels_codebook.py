"""Codebook matching against definitions in float64."""

import pytest
import torch

from fr_kernels import nearest_code, soft_lookup


def brute_force(features: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (features.double()[:, None] - codebook.double()[None]).square().sum(2).argmin(1)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (5000, 33, 8), (63, 1024, 256)])
def test_nearest_is_the_brute_force_one(n: int, k: int, d: int) -> None:
    torch.manual_seed(0)
    features, codebook = torch.randn(n, d), torch.randn(k, d)
    codes, index = nearest_code(features, codebook)
    expected = brute_force(features, codebook)
    # A different index is right only where the two distances are equal to within fp32 rounding.
    differ = index != expected
    gap = (features - codebook[index]).square().sum(1) - (
        features - codebook[expected]
    ).square().sum(1)
    assert (gap[differ].abs() <= 1e-5 * d).all()
    assert differ.float().mean() < 0.002
    assert torch.equal(codes, codebook[index])


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert nearest_code(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), codebook).indices.tolist() == [1, 1]


def test_empty_and_wrong_shapes() -> None:
    assert nearest_code(torch.zeros(0, 4), torch.zeros(3, 4)).indices.shape == (0,)
    with pytest.raises(ValueError, match="same D"):
        nearest_code(torch.zeros(2, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="beta"):
        soft_lookup(torch.zeros(2, 4), torch.zeros(3, 4), 0.0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 30.0])
def test_gradients_are_those_of_the_soft_assignment(beta: float) -> None:
    torch.manual_seed(0)
    features = torch.randn(4100, 6, requires_grad=True)
    codebook = torch.randn(17, 6, requires_grad=True)
    grad = torch.randn(4100, 6)
    soft_lookup(features, codebook, beta).codes.backward(grad)
    f, c = features.detach().double().requires_grad_(), codebook.detach().double().requires_grad_()
    weights = (-beta * torch.cdist(f, c).square()).softmax(1)
    (weights @ c).backward(grad.double())
    for got, exact in ((features.grad, f.grad), (codebook.grad, c.grad)):
        assert got is not None
        assert exact is not None
        f2, c2 = features.detach().requires_grad_(), codebook.detach().requires_grad_()
        ((-beta * torch.cdist(f2, c2).square()).softmax(1) @ c2).backward(grad)
        eager = f2.grad if exact is f.grad else c2.grad
        assert eager is not None
        band = torch.finfo(torch.float32).eps * exact.abs().max()
        assert (got - exact).abs().max() <= 2 * (eager - exact).abs().max() + band
