"""group_norm_silu: values and every gradient against float64, beside eager torch in the same dtype."""

import re
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.group_norm_silu import tiles, triton_backward, triton_impl
from fr_kernels.group_norm_silu.op import group_norm_silu
from fr_kernels.launch import Settings
from fr_kernels.phase_shuffle import reference as shuffle
from kernel_checks import (
    DTYPES,
    WITHOUT_DOT,
    check_operator,
    compiles_whole,
    launches,
    poisoned,
    within_budget,
)

# exp(-z) = inf at z < -88 is how sigmoid gets to 0.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

EPS = 1e-6


@dataclass(frozen=True)
class Case:
    """One call; `shape` is that of y."""

    shape: tuple[int, int, int, int]
    groups: int
    act: str = "silu"
    residual: bool = False
    bias: int = 0
    """Dimensions of bias; 0 for none."""
    shuffled: bool = False
    mean: float = 0.0

    @property
    def plain(self) -> bool:
        return not (self.residual or self.bias or self.shuffled)

    def inputs(self, dtype: torch.dtype) -> list[Tensor | None]:
        """x, w, b, residual, bias: leaves, in contiguous NCHW memory."""
        batch, channels, height, width = self.shape
        torch.manual_seed(0)
        shape = self.shape
        if self.shuffled:
            shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
        bias = torch.randn((batch, channels)[2 - self.bias :]) if self.bias else None
        given = [
            torch.randn(shape) + self.mean,
            torch.randn(channels) + 1,
            torch.randn(channels),
            torch.randn(shape) if self.residual else None,
            bias,
        ]
        return [None if t is None else t.to(dtype).requires_grad_() for t in given]

    def into(self, dtype: torch.dtype) -> list[Tensor]:
        """The gradients that reach the outputs."""
        torch.manual_seed(1)
        return [torch.randn(self.shape).to(dtype) for _ in range(1 if self.plain else 2)]

    def run(self, inputs: list[Tensor | None], impl: str) -> tuple[Tensor, ...]:
        x, w, b, residual, bias = inputs
        y, h = group_norm_silu(
            x, w, b, self.groups, self.act,
            eps=EPS, residual=residual, bias=bias, shuffled=self.shuffled, impl=impl,
        )  # fmt: skip
        return (y,) if self.plain else (y, h)

    def eager(self, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        """What one would write: contiguous NCHW, where torch's statistics are at their best."""
        x, w, b, residual, bias = inputs
        h = pixels_of(x, self.shape) if self.shuffled else x
        h = h if residual is None else h + residual
        h = h if bias is None else h + bias[..., None, None]
        y = F.group_norm(h, self.groups, w, b, EPS)
        y = F.silu(y) if self.act == "silu" else y
        return (y,) if self.plain else (y, h)


def pixels_of(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """phase_shuffle by torch's pixel_shuffle."""
    _, channels, height, width = shape
    phases = [
        x[:, k * channels : (k + 1) * channels][:, :, py : py + height // 2, px : px + width // 2]
        for k, (py, px) in enumerate(shuffle.PHASES)
    ]
    return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), 2)


def results(case: Case, inputs: list[Tensor | None], impl: str) -> list[Tensor]:
    """Outputs, then the gradients to every input; impl "eager" too."""
    outputs = case.eager(inputs) if impl == "eager" else case.run(inputs, impl)
    leaves = [t for t in inputs if t is not None]
    return [
        *(t.detach() for t in outputs),
        *torch.autograd.grad(outputs, leaves, case.into(leaves[0].dtype)),
    ]


def exactly(case: Case, inputs: list[Tensor | None]) -> list[Tensor]:
    """The same in float64, from the same numbers."""
    wide = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    outputs = case.eager(wide)
    leaves = [t for t in wide if t is not None]
    into = [t.double() for t in case.into(inputs[0].dtype)]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, leaves, into)]


def all_within_budget(case: Case, inputs: list[Tensor | None], got: list[Tensor]) -> None:
    eager, exact = results(case, inputs, "eager"), exactly(case, inputs)
    assert len(got) == len(eager) == len(exact)
    for mine, peer, truth in zip(got, eager, exact, strict=True):
        within_budget(mine, peer, truth)


CASES = [
    Case((2, 12, 5, 3), 3),
    Case((2, 12, 5, 3), 3, "none", mean=-3.0),
    Case((1, 40, 12, 13), 4, residual=True, bias=2),  # 10 channels a group, two tiles of pixels
    Case((2, 96, 3, 5), 16, "none", bias=1),  # 6 channels a group, three tiles of channels
    Case((1, 70, 3, 7), 7, residual=True),  # 64 does not divide C: the second tile is partly empty
    Case((3, 8, 6, 10), 2, bias=1, shuffled=True),
    Case((2, 8, 2, 2), 2, "none", shuffled=True),
    Case((2, 6, 1, 1), 2, bias=2),
]


@pytest.mark.oldest
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_values_and_gradients_are_within_the_error_budget(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case.inputs(dtype)
    with poisoned(monkeypatch):
        got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)
    all_within_budget(case, inputs, results(case, inputs, "reference"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [100.0, -1000.0])
def test_a_large_mean_costs_no_digits(mean: float, dtype: torch.dtype) -> None:
    """Where E[x^2] - E[x]^2 would lose all of them."""
    case = Case((1, 20, 12, 13), 2, mean=mean)
    inputs = case.inputs(dtype)
    all_within_budget(case, inputs, results(case, inputs, "triton"))


def test_what_rounding_takes_from_the_mean_is_not_lost() -> None:
    """Means of 1001 2/3 and 1016 2/3, which float32 misses by 2e-5; the peer gets the same picture around 0."""
    level = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])[:, None, None].expand(1, 6, 3, 3)
    case = Case((1, 6, 3, 3), 2)
    _, w, b, _, _ = case.inputs(torch.float32)
    around_0 = [level.clone().requires_grad_(), w, b, None, None]
    shifted = [(level + 1000).requires_grad_(), w, b, None, None]
    for impl in ("reference", "triton"):
        all_within_budget(case, around_0, results(case, shifted, impl))


@pytest.mark.oldest
def test_sums_over_many_tiles_take_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles in place of a large picture: five tiles of pixels, three steps; three images, two steps."""

    def small(op: str, key: str, default: Settings, *_: object) -> Settings:
        least = {"PIXELS": 32, "CHANNELS": 4, "TILES": 2, "IMAGES": 2}
        return Settings({k: least.get(k, v) for k, v in default.blocks.items()}, 4, 1)

    monkeypatch.setattr(tiles, "tuned", small)
    case = Case((3, 6, 10, 14), 2, residual=True, bias=1, mean=30.0)
    inputs = case.inputs(torch.float32)
    with poisoned(monkeypatch):
        got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype: torch.dtype) -> None:
    """A constant picture (variance 0), one value that outweighs all others, and both flat ends of SiLU."""
    x = torch.full((2, 4, 5, 5), 7.3)
    x[0, 0, 2, 2] = 6e4
    w, b = torch.tensor([1.0, -1.0, 300.0, 1.0]), torch.tensor([0.5, 200.0, -200.0, 3e4])
    case = Case((2, 4, 5, 5), 2)
    inputs = [*(t.to(dtype).requires_grad_() for t in (x, w, b)), None, None]
    got = results(case, inputs, "triton")
    all_within_budget(case, inputs, got)
    activated = F.silu(b.to(dtype).double()).to(dtype)
    assert torch.equal(got[0][1], activated[:, None, None].expand(4, 5, 5))


@pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
def test_two_runs_are_bitwise_equal(case: Case) -> None:
    inputs = case.inputs(torch.float16)
    first, second = (results(case, inputs, "triton") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_h_is_the_sum_rounded_once_in_every_implementation() -> None:
    case = CASES[2]
    inputs = case.inputs(torch.float16)
    x, _, _, residual, bias = inputs
    exact = (x.double() + residual.double() + bias.double()[..., None, None]).half()
    for impl in ("reference", "triton"):
        y, h = case.run(inputs, impl)
        assert torch.equal(h, exact)
        assert h.is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        # What is normalised is the rounded sum, which backward reads.
        assert torch.equal(group_norm_silu(h, *inputs[1:3], 4, eps=EPS, impl=impl).y, y)
    assert group_norm_silu(*inputs[:3], 4, impl="triton").h is x


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


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_strides_do_not_matter(impl: str) -> None:
    case = Case((2, 12, 5, 6), 3, residual=True, bias=2)
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


def channels_last(t: Tensor) -> Tensor:
    if t.ndim == 4:
        t = t.detach().to(memory_format=torch.channels_last)
    return t.detach().requires_grad_()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradient_through_one_output_alone(impl: str) -> None:
    case = Case((1, 4, 3, 3), 2, residual=True, bias=1)
    inputs = case.inputs(torch.float32)
    both = torch.ones(case.shape)
    y, h = case.run(inputs, impl)
    through_h = torch.autograd.grad(h, inputs, both, retain_graph=True)
    expected = (both, torch.zeros(4), torch.zeros(4), both, torch.full((4,), 9.0))
    for one, other in zip(through_h, expected, strict=True):
        assert torch.equal(one, other)
    through_y = torch.autograd.grad(y, inputs, both, retain_graph=True)
    plain = torch.autograd.grad(case.eager(inputs)[0], inputs, both)
    for one, other in zip(through_y, plain, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 4, 2, 3), 2),
        Case((2, 4, 2, 3), 2, residual=True, bias=2),
        Case((2, 4, 2, 2), 2, "none", bias=1, shuffled=True),
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


def arguments(case: Case, inputs: list[Tensor | None]) -> tuple[object, ...]:
    """Of the operator, but for `impl`."""
    x, w, b, residual, bias = inputs
    return x, w, b, case.groups, EPS, case.act == "silu", residual, bias, case.shuffled


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        (torch.float32, Case((2, 4, 2, 3), 2, residual=True, bias=2)),
        (torch.float16, Case((2, 4, 2, 4), 2, bias=1, shuffled=True)),
        (torch.bfloat16, Case((2, 4, 2, 3), 2)),
        (torch.float64, Case((1, 4, 1, 1), 1, residual=True)),
    ],
    ids=str,
)
def test_operator_contract(dtype: torch.dtype, case: Case) -> None:
    inputs = case.inputs(dtype)
    given = arguments(case, inputs)
    check_operator(torch.ops.fr_kernels.group_norm_silu, *given, "reference")
    with torch.no_grad():
        y, h, statistics = torch.ops.fr_kernels.group_norm_silu(*given, "reference")
        x, w, b, _, bias = inputs
        h = x if case.plain else h
        given = (y, None if case.plain else h, h, w, b, bias, statistics, True, case.shuffled)
    given = tuple(t.detach() if isinstance(t, Tensor) else t for t in given)
    check_operator(torch.ops.fr_kernels.group_norm_silu_backward, *given, "reference")


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_it_compiles_whole(case: Case) -> None:
    inputs = case.inputs(torch.float32)

    def call(*given: Tensor | None) -> tuple[Tensor, ...]:
        return case.run(list(given), "auto")

    compiled = compiles_whole(call, *inputs)
    for one, other in zip(compiled, case.run(inputs, "reference"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3], CASES[5]], ids=str)
def test_launches_are_the_declared_ones(case: Case) -> None:
    inputs = [None if t is None else channels_last(t).detach() for t in case.inputs(torch.float16)]
    given = arguments(case, inputs)
    made = launches(lambda: triton_impl.group_norm_silu(*given))
    assert len(made) == declared_launches("group_norm_silu", *given)
    y, h, statistics = triton_impl.group_norm_silu(*given)
    _, w, b, _, bias = inputs
    given = (y, None if case.plain else h, h, w, b, bias, statistics, True, case.shuffled)
    made = launches(lambda: triton_backward.group_norm_silu_backward(*given))
    assert len(made) == declared_launches("group_norm_silu_backward", *given)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_empty_batch(impl: str) -> None:
    case = Case((0, 8, 2, 2), 2, residual=True, bias=1)
    inputs = case.inputs(torch.float32)
    got = results(case, inputs, impl)
    assert [t.shape for t in got] == [t.shape for t in (inputs[0], inputs[0], *inputs)]
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
