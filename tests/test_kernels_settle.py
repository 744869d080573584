"""settle: values and every gradient against float64, beside eager torch in the same dtype; the contract."""

import re
from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels import settle
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.launch import Settings
from fr_kernels.layer_norm import triton_backward as sums
from fr_kernels.phase_shuffle import reference as shuffle
from fr_kernels.settle import triton_backward, triton_impl
from kernel_checks import (
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


@dataclass(frozen=True)
class Case:
    """One call; `shape` is that of the picture, without the padding."""

    shape: tuple[int, int, int, int]
    residual: bool = False
    bias: bool = False
    pad: bool = False
    shuffled: bool = False

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """x, and what is added to it, in contiguous NCHW memory."""
        batch, channels, height, width = self.shape
        torch.manual_seed(0)
        shape = self.shape
        if self.shuffled:
            shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
        shapes = [shape, *[self.shape] * self.residual, *[(channels,)] * self.bias]
        return [torch.randn(size).to(dtype) for size in shapes]

    def named(self, rest: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The inputs after x."""
        names = ["residual"] * self.residual + ["bias"] * self.bias
        return dict(zip(names, rest, strict=True))

    def ours(self, impl: str) -> object:
        def call(x: Tensor, *rest: Tensor) -> Tensor:
            flags = {"pad": self.pad, "shuffled": self.shuffled}
            return settle(x, **self.named(rest), **flags, impl=impl)

        return call

    def eager(self, x: Tensor, *rest: Tensor) -> Tensor:
        """What one would write."""
        named = self.named(rest)
        y = self.pixels_of(x) if self.shuffled else x
        y = y + named["residual"] if self.residual else y
        y = y + named["bias"][:, None, None] if self.bias else y
        return F.pad(y, (0, 1, 0, 1)) if self.pad else y

    def pixels_of(self, x: Tensor) -> Tensor:
        """phase_shuffle by torch's pixel_shuffle."""
        _, c, height, width = self.shape
        phases = [
            x[:, k * c : (k + 1) * c, py : py + height // 2, px : px + width // 2]
            for k, (py, px) in enumerate(shuffle.PHASES)
        ]
        return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), 2)

    def arguments(self, inputs: list[Tensor]) -> tuple[object, ...]:
        """Of the operator, but for `impl`."""
        named = self.named(tuple(inputs[1:]))
        return inputs[0], named.get("residual"), named.get("bias"), self.pad, self.shuffled


EVERY = [
    Case((2, 12, 4, 6), *options) for options in product((False, True), repeat=4) if any(options)
]
CASES = [
    *EVERY,
    Case((1, 70, 5, 7), residual=True, bias=True, pad=True),  # 64 does not divide C: two tiles
    Case((3, 96, 1, 1), bias=True, pad=True),  # three tiles of channels
    Case((1, 3, 13, 41), residual=True, bias=True),  # three tiles of pixels
    Case((2, 5, 2, 12), residual=True, bias=True, pad=True, shuffled=True),
]


def channels_last(tensor: Tensor) -> Tensor:
    last = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.contiguous(memory_format=last)


@pytest.mark.oldest
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_values_and_gradients_are_within_the_error_budget(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case.inputs(dtype)
    with poisoned(monkeypatch):
        got = results(case.ours("triton"), inputs)
    all_within_budget(got, case.eager, inputs)
    all_within_budget(results(case.ours("reference"), inputs), case.eager, inputs)


@pytest.mark.filterwarnings(
    "ignore:overflow encountered in cast"
)  # a sum that float16 has as infinity
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_sum_is_rounded_once_and_the_padding_is_zero(case: Case, impl: str) -> None:
    """Also of numbers whose first sum is beyond float16, and the whole one is not."""
    for size in (1, 5e4):
        x, *rest = (t.clamp(-1, 1) * size for t in case.inputs(torch.float16))
        rest = [*rest[:-1], -rest[-1].abs()] if case.bias else rest
        exact = case.eager(x.double(), *(t.double() for t in rest)).half()
        y = case.ours(impl)(x, *rest)
        assert torch.equal(y, exact)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.oldest
def test_the_bias_gradient_sums_many_tiles_in_several_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small limits in place of a large picture: ten tiles of 32 pixels in all, two a program."""
    monkeypatch.setattr(triton_backward, "TILES", 6)
    monkeypatch.setattr(sums, "SUM", Settings({"ROWS": 2, "CHANNELS": 16}))
    case = Case((2, 20, 12, 13), residual=True, bias=True, pad=True)
    inputs = case.inputs(torch.float32)
    with poisoned(monkeypatch):
        got = results(case.ours("triton"), inputs)
    all_within_budget(got, case.eager, inputs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("case", [EVERY[-1], CASES[-3]], ids=str)
def test_strides_and_runs_do_not_matter(case: Case, impl: str) -> None:
    inputs = case.inputs(torch.float32)
    expected = results(case.ours(impl), inputs)
    for change in (torch.clone, channels_last, strided):
        got = results(case.ours(impl), [change(t) for t in inputs])
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


def test_the_bias_may_be_of_another_dtype() -> None:
    case = Case((2, 12, 4, 6), bias=True)
    x, bias = case.inputs(torch.float16)
    for impl in IMPLS:
        wide = bias.float().requires_grad_()
        y = case.ours(impl)(x, wide)
        assert torch.equal(y, case.ours(impl)(x, bias))
        (grad,) = torch.autograd.grad(y, wide, torch.full_like(y, 0.25))
        assert torch.equal(grad, torch.full((12,), 12.0))


@pytest.mark.parametrize("case", [EVERY[-1], EVERY[5]], ids=str)
def test_the_backward_formula_is_the_derivative(case: Case) -> None:
    case = Case((2, 2, 2, 4), case.residual, case.bias, case.pad, case.shuffled)
    inputs = [t.requires_grad_() for t in case.inputs(torch.float64)]
    assert torch.autograd.gradcheck(case.ours("reference"), inputs)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_operator_contract(case: Case) -> None:
    dtypes = (*WITHOUT_DOT, torch.float64)
    dtype = dtypes[EVERY.index(case) % len(dtypes)]
    given = case.arguments([t.requires_grad_() for t in case.inputs(dtype)])
    check_operator(torch.ops.fr_kernels.settle, *given, "reference")


@pytest.mark.parametrize("dtype", [*WITHOUT_DOT, torch.float64])
def test_contract_of_the_bias_gradient(dtype: torch.dtype) -> None:
    grad, bias = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(3).to(dtype)
    for pad in (False, True):
        check_operator(torch.ops.fr_kernels.settle_backward, grad, bias, pad, "reference")


@pytest.mark.parametrize("case", [EVERY[-1], EVERY[0]], ids=str)
def test_it_compiles_whole(case: Case) -> None:
    inputs = [t.requires_grad_() for t in case.inputs(torch.float32)]
    compiled = compiles_whole(case.ours("auto"), *inputs)
    expected = case.ours("reference")(*inputs)
    assert torch.equal(compiled, expected)
    into = torch.randn(expected.shape)
    got, plain = (torch.autograd.grad(y, inputs, into) for y in (compiled, expected))
    for one, other in zip(got, plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_launches_are_the_declared_ones(case: Case) -> None:
    given = case.arguments([channels_last(t) for t in case.inputs(torch.float16)])
    made = launches(lambda: triton_impl.settle(*given))
    assert len(made) == declared_launches("settle", *given) == 1
    given = (triton_impl.settle(*given), torch.ones(12), case.pad)
    made = launches(lambda: triton_backward.settle_backward(*given))
    assert len(made) == declared_launches("settle_backward", *given) == 2


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    case = Case((0, 8, 2, 4), residual=True, bias=True, pad=True)
    inputs = case.inputs(torch.float32)
    y, *gradients = results(case.ours(impl), inputs)
    assert y.shape == (0, 8, 3, 5)
    assert [t.shape for t in gradients] == [t.shape for t in inputs]
    assert torch.equal(gradients[-1], torch.zeros(8))


def test_wrong_calls() -> None:
    x, bias = torch.zeros(2, 8, 3, 3), torch.zeros(8)
    wrong = [
        ("nothing to settle; give residual, bias, pad or shuffled", (x,), {}),
        ("x is (8, 3, 3) torch.float32; expected [B, C, H, W]", (x[0],), {"pad": True}),
        ("x is (2, 8, 3, 0)", (x[..., :0],), {"pad": True}),
        ("expected [B, 4C, H/2 + 1, W/2 + 1]", (x[..., :1],), {"shuffled": True}),
        ("expected [B, 4C, H/2 + 1, W/2 + 1]", (x[:, :6],), {"shuffled": True}),
        ("x is (2, 8, 3, 3) torch.int64", (x.long(),), {"pad": True}),
        ("expected (2, 8, 3, 3) torch.float32", (x,), {"residual": x.half()}),
        ("residual is (2, 8, 3, 3)", (x,), {"residual": x, "shuffled": True}),
        ("bias is (2, 8) torch.float32; expected [8]", (x,), {"bias": torch.zeros(2, 8)}),
        ("bias is (8,) torch.float32; expected [2]", (x,), {"bias": bias, "shuffled": True}),
        ("bias is (8,) torch.int64", (x,), {"bias": bias.long()}),
        ("allowed: 'auto', 'reference', 'triton'", (x,), {"pad": True, "impl": "cuda"}),
    ]
    for message, given, named in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            settle(*given, **named)


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(KernelUnavailableError, match="do not compute in float64"):
        settle(x.double(), pad=True, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        settle(x, pad=True, impl="triton")
