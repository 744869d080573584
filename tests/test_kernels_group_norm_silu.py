"""group_norm_silu: values and every gradient against float64, beside eager torch in the same dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.group_norm_silu import plan, tiles
from fr_kernels.group_norm_silu.op import group_norm_silu
from fr_kernels.launch import Settings
from fr_kernels.phase_shuffle import reference as shuffle
from group_norm_cases import CASES, EPS, Case, all_within_budget, in_launches, results
from kernel_checks import (
    DTYPES,
    WITHOUT_DOT,
    poisoned,
)

# exp(-z) = inf at z < -88 is how sigmoid gets to 0.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.mark.oldest
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_values_and_gradients_are_within_the_error_budget(
    case: Case, dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_launches(count, monkeypatch)
    inputs = case.inputs(dtype)
    with poisoned(monkeypatch):
        got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)
    all_within_budget(case, inputs, results(case, inputs, "reference"))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [100.0, -1000.0])
def test_a_large_mean_costs_no_digits(
    mean: float, dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where E[x^2] - E[x]^2 would lose all of them."""
    in_launches(count, monkeypatch)
    case = Case((1, 20, 12, 13), 2, mean=mean)
    inputs = case.inputs(dtype)
    all_within_budget(case, inputs, results(case, inputs, "triton"))


@pytest.mark.parametrize("count", [1, 2])
def test_what_rounding_takes_from_the_mean_is_not_lost(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means of 1001 2/3 and 1016 2/3, which float32 misses by 2e-5; the peer gets the same picture around 0."""
    in_launches(count, monkeypatch)
    small_tiles(monkeypatch, pixels=2)
    level = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])[:, None, None].expand(1, 6, 3, 3)
    case = Case((1, 6, 3, 3), 2)
    _, w, b, *_ = case.inputs(torch.float32)
    around_0 = [level.clone().requires_grad_(), w, b, None, None, None]
    shifted = [(level + 1000).requires_grad_(), w, b, None, None, None]
    for impl in ("reference", "triton"):
        all_within_budget(case, around_0, results(case, shifted, impl))


def small_tiles(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """In place of a large picture: tiles of few pixels, four channels, two tiles or images at a time, three parts."""

    def small(op: str, key: str, default: Settings, *_: object) -> Settings:
        least = {"PIXELS": pixels, "CHANNELS": 4, "TILES": 2, "IMAGES": 2}
        return Settings({k: least.get(k, v) for k, v in default.blocks.items()}, 4, 1)

    monkeypatch.setattr(tiles, "tuned", small)
    monkeypatch.setattr(plan, "PROGRAMS", {"statistics": 3, "apply": 3})


@pytest.mark.oldest
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_sums_over_many_tiles_take_several_steps(
    mean: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine tiles of pixels, the last partly empty, in three parts; three images in two steps."""
    in_launches(count, monkeypatch)
    small_tiles(monkeypatch, pixels=16)
    case = Case((3, 6, 10, 14), 2, residual=True, bias=1, mean=mean)
    inputs = case.inputs(torch.float32)
    with poisoned(monkeypatch):
        got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_first_tile_far_from_the_others_costs_no_digits(
    dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three deviations, the most that one tile of nine can be away, and 5000 of the others' own."""
    in_launches(count, monkeypatch)
    small_tiles(monkeypatch, pixels=16)
    case = Case((1, 4, 12, 12), 2)
    inputs = case.inputs(torch.float32)
    inputs[0] = inputs[0].detach() * 1e-2
    inputs[0].flatten(2)[..., :16] += 50.0
    inputs = [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
    all_within_budget(case, inputs, results(case, inputs, "triton"))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant picture (variance 0), one value that outweighs all others, and both flat ends of SiLU."""
    in_launches(count, monkeypatch)
    x = torch.full((2, 4, 5, 5), 7.3)
    x[0, 0, 2, 2] = 6e4
    w, b = torch.tensor([1.0, -1.0, 300.0, 1.0]), torch.tensor([0.5, 200.0, -200.0, 3e4])
    case = Case((2, 4, 5, 5), 2)
    inputs = [*(t.to(dtype).requires_grad_() for t in (x, w, b)), None, None, None]
    got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)
    activated = F.silu(b.to(dtype).double()).to(dtype)
    assert torch.equal(got[0][1], activated[:, None, None].expand(4, 5, 5))


def test_h_is_the_sum_rounded_once_in_every_implementation() -> None:
    case = CASES[2]
    inputs = case.inputs(torch.float16)
    x, _, _, residual, bias, _ = inputs
    exact = (x.double() + residual.double() + bias.double()[..., None, None]).half()
    for impl in ("reference", "triton"):
        y, h = case.run(inputs, impl)
        assert torch.equal(h, exact)
        assert h.is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        # What is normalised is the rounded sum, which backward reads.
        assert torch.equal(group_norm_silu(h, *inputs[1:3], 4, eps=EPS, impl=impl).y, y)
    assert group_norm_silu(*inputs[:3], 4, impl="triton").h is x


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES[-4:], ids=str)
def test_a_skip_is_the_concatenation_and_then_the_norm(
    case: Case, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, forward and backward, so the picture between them need not be made."""
    in_launches(count, monkeypatch)
    inputs = case.inputs(torch.float16)
    x, w, b, residual, bias, skip = inputs
    before = shuffle.phase_shuffle(x.detach()) if case.shuffled else x.detach()
    before = before.double() if residual is None else before.double() + residual.double()
    before = before if bias is None else before + bias.double()[..., None, None]
    y, h = case.run(inputs, "triton")
    assert torch.equal(h, torch.cat([before.half(), skip], 1))
    assert h.is_contiguous(memory_format=torch.channels_last)
    joined = h.detach().requires_grad_()
    alone, same = group_norm_silu(joined, w, b, case.groups, case.act, eps=EPS, impl="triton")
    assert same is joined
    assert torch.equal(alone, y)
    into = torch.randn_like(y)
    of_skip, of_w = torch.autograd.grad(y, (skip, w), into)
    whole, of_same_w = torch.autograd.grad(alone, (joined, w), into)
    assert torch.equal(of_skip, whole[:, -case.skip :])
    assert torch.equal(of_w, of_same_w)


def test_shuffled_is_the_shuffle_and_then_the_norm() -> None:
    """Bit for bit, forward and backward, so the picture between them need not be made."""
    shuffled, after = CASES[5], Case((3, 8, 6, 10), 2, bias=1)
    inputs = shuffled.inputs(torch.float16)
    picture = shuffle.phase_shuffle(inputs[0].detach()).requires_grad_()
    folded = results(shuffled, inputs, "triton")
    plain = results(after, [picture, *inputs[1:]], "triton")
    plain[2] = shuffle.phase_shuffle_backward(plain[2])
    for one, other in zip(folded, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 4, 2, 3), 2),
        Case((2, 4, 2, 3), 2, residual=True, bias=2),
        Case((2, 4, 2, 2), 2, "none", bias=1, shuffled=True),
        Case((2, 6, 2, 2), 2, residual=True, bias=2, skip=2),
        Case((2, 6, 2, 2), 2, bias=1, skip=4, shuffled=True),
    ],
    ids=str,
)
def test_the_backward_formula_is_the_derivative(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    leaves = [t for t in inputs if t is not None]

    def call(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return case.run([None if t is None else next(rest) for t in inputs], "reference")

    assert torch.autograd.gradcheck(call, leaves)
