"""The CPU's forms of group_norm_silu and nearest_code: values against float64, memory, contract."""

import pytest
import torch
from torch import Tensor

from codebook_cases import data, exact_distances
from fr_kernels import group_norm_silu, native, nearest_code
from fr_kernels.dispatch import KernelUnavailableError
from group_norm_cases import CASES, Case, all_within_budget, results
from kernel_checks import NO_COMPILER, poisoned, strided

pytestmark = [
    pytest.mark.skipif(bool(native.obstacle("conv3x3")), reason=NO_COMPILER),
    # exp(-z) = inf at z < -88 is how sigmoid gets to 0.
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),
]
FLOAT = torch.float32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_norms_and_their_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.inputs(FLOAT)
    with poisoned(monkeypatch):
        got = results(case, inputs, "cpu")
    all_within_budget(case, inputs, got)


@pytest.mark.parametrize("mean", [100.0, -1000.0])
@pytest.mark.parametrize("shape", [(1, 20, 12, 13), (2, 64, 40, 21), (1, 6, 1, 1)])
def test_a_large_mean_costs_no_digits(shape: tuple[int, int, int, int], mean: float) -> None:
    case = Case(shape, 2, mean=mean)
    inputs = case.inputs(FLOAT)
    all_within_budget(case, inputs, results(case, inputs, "cpu"))


def test_a_first_block_far_from_the_others_costs_no_digits() -> None:
    case = Case((1, 8, 32, 16), 2)
    x, *rest = case.inputs(FLOAT)
    far = x.detach().clone()
    far[:, :, :4] += 1e4
    inputs = [far.requires_grad_(), *rest]
    all_within_budget(case, inputs, results(case, inputs, "cpu"))


def test_neither_batch_nor_threads_nor_strides_change_a_norm() -> None:
    case = Case((3, 40, 17, 9), 4, residual=True, bias=2, skip=8)
    given = [None if t is None else t.detach() for t in case.inputs(FLOAT)]
    x, w, b, residual, bias, skip = given
    named = {"residual": residual, "bias": bias, "skip": skip}
    expected = group_norm_silu(x, w, b, 4, **named, impl="cpu")
    for at in range(3):
        one = {name: t[at : at + 1] for name, t in named.items() if t is not None}
        alone = group_norm_silu(x[at : at + 1], w, b, 4, **one, impl="cpu")
        assert torch.equal(alone.y[0], expected.y[at])
    spread = {name: strided(t) for name, t in named.items() if t is not None}
    again = group_norm_silu(*(strided(t) for t in (x, w, b)), 4, **spread, impl="cpu")
    assert torch.equal(again.y, expected.y)
    assert torch.equal(again.h, expected.h)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(group_norm_silu(x, w, b, 4, **named, impl="cpu").y, expected.y)
    finally:
        torch.set_num_threads(threads)


def test_silu_of_any_size_and_of_what_is_not_finite() -> None:
    """One value a group is normed to 0, so the shift alone is what SiLU sees."""
    values = torch.tensor([-200.0, -104.0, -88.5, -87.0, -20.0, -1e-8, 0.0, 1e-8, 3.0, 89.0, 3e38])
    zeros = torch.zeros(1, len(values), 1, 1)
    got = group_norm_silu(zeros, torch.ones_like(values), values, len(values), impl="cpu").y
    exact = torch.nn.functional.silu(values.double())
    torch.testing.assert_close(got[0, :, 0, 0].double(), exact, rtol=4e-7, atol=1e-36)
    spoilt = group_norm_silu(zeros, values, values / 0 * 0, len(values), impl="cpu").y
    assert spoilt.isnan().all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (5000, 33, 8), (63, 1024, 256), (301, 100, 5)])
def test_the_nearest_code(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    features, codebook = (t.detach() for t in data(shape))
    exact = exact_distances(features, codebook)
    with poisoned(monkeypatch):
        codes, index = nearest_code(features, codebook, impl="cpu")
    excess = exact.gather(1, index.long()[:, None])[:, 0] - exact.min(1).values
    peer = nearest_code(features, codebook, impl="reference").indices
    allowed = exact.gather(1, peer.long()[:, None])[:, 0] - exact.min(1).values
    band = torch.finfo(FLOAT).eps * exact.abs().max()
    assert excess.max() <= 2 * (allowed.max() + band)
    assert torch.equal(codes, codebook[index])
    assert index.dtype == torch.int32


def test_ties_go_to_the_lowest_code() -> None:
    generator = torch.Generator().manual_seed(0)
    features, codebook = (
        torch.randint(-2, 3, (n, 20), generator=generator).float() for n in (97, 131)
    )
    codebook[65:130] = codebook[:65].clone()
    exact = exact_distances(features, codebook)
    lowest = (exact == exact.min(1, keepdim=True).values).int().argmax(1)
    assert nearest_code(features, codebook, impl="cpu").indices.tolist() == lowest.tolist()


def test_what_is_not_finite_is_never_chosen_and_spoils_only_itself() -> None:
    features, codebook = (t.detach() for t in data((40, 70, 16)))
    expected = nearest_code(features, codebook[1:], impl="cpu").indices + 1
    codebook[0] = float("nan")
    assert torch.equal(nearest_code(features, codebook, impl="cpu").indices, expected)
    features[3], features[11], features[12] = float("nan"), float("inf"), -float("inf")
    got = nearest_code(features, codebook, impl="cpu").indices
    rest = [i for i in range(40) if i not in (3, 11, 12)]
    assert torch.equal(got[rest], expected[rest])
    assert bool(((got >= 0) & (got < 70)).all())


def test_the_gradient_is_the_references() -> None:
    def gradient(impl: str) -> Tensor:
        features, codebook = data((30, 12, 8))
        codes = nearest_code(features, codebook, impl=impl).codes
        (made,) = torch.autograd.grad(codes.square().sum(), codebook)
        return made

    assert torch.equal(gradient("cpu"), gradient("reference"))


def test_an_explicit_request_never_falls_back() -> None:
    x = torch.zeros(1, 4, 2, 2, dtype=torch.float16)
    with pytest.raises(KernelUnavailableError, match="float16, and it computes in float32 alone"):
        group_norm_silu(x, x[0, :, 0, 0], x[0, :, 0, 0], 2, impl="cpu")
    with pytest.raises(KernelUnavailableError, match="and it computes in float32 alone"):
        nearest_code(torch.zeros(2, 4), torch.zeros(3, 4).half(), impl="cpu")
