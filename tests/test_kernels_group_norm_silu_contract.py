"""group_norm_silu: the operator's contract, launches, strides, empty batches, refusals."""

import re

import pytest
import torch
from torch import Tensor

from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.group_norm_silu import triton_backward, triton_impl
from fr_kernels.group_norm_silu.op import group_norm_silu
from group_norm_cases import (
    CASES,
    EPS,
    Case,
    channels_last,
    in_launches,
    results,
)
from kernel_checks import (
    check_operator,
    compiles_whole,
    launches,
)

# exp(-z) = inf at z < -88 is how sigmoid gets to 0.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", [CASES[2], CASES[5], CASES[8]], ids=str)
def test_two_runs_are_bitwise_equal(
    case: Case, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_launches(count, monkeypatch)
    inputs = case.inputs(torch.float16)
    first, second = (results(case, inputs, "triton") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_strides_do_not_matter(impl: str) -> None:
    case = Case((2, 12, 5, 6), 3, residual=True, bias=2, skip=5)
    inputs = case.inputs(torch.float32)
    expected = results(case, inputs, impl)

    def spread(t: Tensor) -> Tensor:
        """Every second element of a larger tensor, the last dimension first in memory."""
        large = torch.full((*t.shape[::-1], 2), float("nan"), dtype=t.dtype)
        out = large[..., 0].permute(*reversed(range(t.ndim)))
        return out.copy_(t.detach()).requires_grad_()

    for change in (spread, lambda t: channels_last(t)):
        changed = [None if t is None else change(t) for t in inputs]
        for one, other in zip(results(case, changed, impl), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradient_through_one_output_alone(impl: str) -> None:
    case = Case((1, 6, 3, 3), 2, residual=True, bias=1, skip=2)
    inputs = case.inputs(torch.float32)
    both = torch.ones(case.shape)
    y, h = case.run(inputs, impl)
    through_h = torch.autograd.grad(h, inputs, both, retain_graph=True)
    own, skip = both.split((4, 2), 1)
    expected = (own, torch.zeros(6), torch.zeros(6), own, torch.full((4,), 9.0), skip)
    for one, other in zip(through_h, expected, strict=True):
        assert torch.equal(one, other)
    through_y = torch.autograd.grad(y, inputs, both, retain_graph=True)
    plain = torch.autograd.grad(case.eager(inputs)[0], inputs, both)
    for one, other in zip(through_y, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5


def arguments(case: Case, inputs: list[Tensor | None]) -> tuple[object, ...]:
    """Of the operator, but for `impl`."""
    x, w, b, residual, bias, skip = inputs
    return x, w, b, case.groups, EPS, case.act == "silu", residual, bias, skip, case.shuffled


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        (torch.float32, Case((2, 4, 2, 3), 2, residual=True, bias=2)),
        (torch.float16, Case((2, 4, 2, 4), 2, bias=1, shuffled=True)),
        (torch.bfloat16, Case((2, 4, 2, 3), 2)),
        (torch.float64, Case((1, 4, 1, 1), 1, residual=True)),
        (torch.float16, Case((2, 6, 2, 3), 2, residual=True, bias=2, skip=2)),
        (torch.float32, Case((1, 6, 2, 4), 2, bias=1, skip=4, shuffled=True)),
    ],
    ids=str,
)
def test_operator_contract(dtype: torch.dtype, case: Case) -> None:
    inputs = case.inputs(dtype)
    given = arguments(case, inputs)
    check_operator(torch.ops.fr_kernels.group_norm_silu, *given, "reference")
    with torch.no_grad():
        y, h, statistics = torch.ops.fr_kernels.group_norm_silu(*given, "reference")
        x, w, b, _, bias, _ = inputs
        h = x if case.plain else h
        given = (y, None if case.plain else h, h, w, b, bias, statistics)
        given = (*given, True, case.skip, case.shuffled)
    given = tuple(t.detach() if isinstance(t, Tensor) else t for t in given)
    check_operator(torch.ops.fr_kernels.group_norm_silu_backward, *given, "reference")


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[8]], ids=str)
def test_it_compiles_whole(case: Case) -> None:
    inputs = case.inputs(torch.float32)

    def call(*given: Tensor | None) -> tuple[Tensor, ...]:
        return case.run(list(given), "auto")

    compiled = compiles_whole(call, *inputs)
    for one, other in zip(compiled, case.run(inputs, "auto"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3], CASES[5], *CASES[8:11]], ids=str)
def test_launches_are_the_declared_ones(
    case: Case, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_launches(count, monkeypatch)
    inputs = [None if t is None else channels_last(t).detach() for t in case.inputs(torch.float16)]
    given = arguments(case, inputs)
    made = launches(lambda: triton_impl.group_norm_silu(*given))
    assert len(made) == declared_launches("group_norm_silu", *given) == count
    y, h, statistics = triton_impl.group_norm_silu(*given)
    _, w, b, _, bias, _ = inputs
    given = (y, None if case.plain else h, h, w, b, bias, statistics)
    given = (*given, True, case.skip, case.shuffled)
    made = launches(lambda: triton_backward.group_norm_silu_backward(*given))
    assert len(made) == declared_launches("group_norm_silu_backward", *given)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_empty_batch(impl: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_launches(count, monkeypatch)
    case = Case((0, 8, 2, 2), 2, residual=True, bias=1, skip=3)
    inputs = case.inputs(torch.float32)
    got = results(case, inputs, impl)
    assert [t.shape for t in got] == [case.shape, case.shape, *(t.shape for t in inputs)]
    assert not any(t.any() for t in got)


def test_wrong_calls() -> None:
    x, w = torch.zeros(2, 8, 3, 3), torch.ones(8)
    wrong = [
        ("expected [B, C, H, W]", (x[0], w, w, 2), {}),
        ("expected [B, C, H, W]", (x[..., :0], w, w, 2), {}),
        ("expected [B, 4C, H/2 + 1, W/2 + 1]", (x[..., :1], w, w, 2), {"shuffled": True}),
        ("expected [8]", (x, w[:4], w, 2), {}),
        ("expected [2]", (x, w, w, 2), {"shuffled": True}),
        ("x is torch.int64; allowed: floating point", (x.long(), w, w, 2), {}),
        ("groups is 3; it must divide the 8 channels", (x, w, w, 3), {}),
        ("groups is 0", (x, w, w, 0), {}),
        ("eps is 0.0; it must be > 0", (x, w, w, 2), {"eps": 0.0}),
        ("act is 'relu'; allowed: 'silu', 'none'", (x, w, w, 2, "relu"), {}),
        ("residual with shuffled", (x, w[:2], w[:2], 2), {"shuffled": True, "residual": x}),
        ("expected (2, 8, 3, 3) torch.float32 as x", (x, w, w, 2), {"residual": x.half()}),
        ("bias is (4,); expected [8] or [2, 8]", (x, w, w, 2), {"bias": w[:4]}),
        ("expected [2, D, 3, 3] torch.float32 as x", (x, w, w, 2), {"skip": x[..., :2]}),
        ("expected [2, D, 3, 3] torch.float32 as x", (x, w, w, 2), {"skip": x.half()}),
        ("expected [2, D, 3, 3] torch.float32 as x, D at", (x, w, w, 2), {"skip": x[:, :0]}),
        ("expected [2, D, 4, 4]", (x, w[:2], w[:2], 2), {"shuffled": True, "skip": x}),
        ("expected [16]", (x, w, w, 2), {"skip": x}),
        ("bias is torch.int64", (x, w, w, 2), {"bias": w.long()}),
        ("allowed: 'auto', 'reference', 'triton'", (x, w, w, 2), {"impl": "cuda"}),
    ]
    for message, given, named in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            group_norm_silu(*given, **named)


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.zeros(1, 4, 2, 2), torch.ones(4)
    with pytest.raises(KernelUnavailableError, match="do not compute in float64"):
        group_norm_silu(x.double(), w, w, 2, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        group_norm_silu(x, w, w, 2, impl="triton")
