"""What the tests of `group_norm_silu` share: one call as a `Case`, eager torch in the same dtype, and float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.group_norm_silu import plan
from fr_kernels.group_norm_silu.op import group_norm_silu
from fr_kernels.phase_shuffle import reference as shuffle
from kernel_checks import within_budget

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
    skip: int = 0
    """Of y's channels, those of the skip; 0 for none."""
    shuffled: bool = False
    mean: float = 0.0

    @property
    def plain(self) -> bool:
        return not (self.residual or self.bias or self.skip or self.shuffled)

    def inputs(self, dtype: torch.dtype) -> list[Tensor | None]:
        """x, w, b, residual, bias, skip: leaves, in contiguous NCHW memory."""
        batch, channels, height, width = self.shape
        torch.manual_seed(0)
        own = channels - self.skip
        shape = (batch, own, height, width)
        if self.shuffled:
            shape = (batch, 4 * own, height // 2 + 1, width // 2 + 1)
        bias = torch.randn((batch, own)[2 - self.bias :]) if self.bias else None
        given = [
            torch.randn(shape) + self.mean,
            torch.randn(channels) + 1,
            torch.randn(channels),
            torch.randn(shape) if self.residual else None,
            bias,
            torch.randn(batch, self.skip, height, width) if self.skip else None,
        ]
        return [None if t is None else t.to(dtype).requires_grad_() for t in given]

    def into(self, dtype: torch.dtype) -> list[Tensor]:
        """The gradients that reach the outputs."""
        torch.manual_seed(1)
        return [torch.randn(self.shape).to(dtype) for _ in range(1 if self.plain else 2)]

    def run(self, inputs: list[Tensor | None], impl: str) -> tuple[Tensor, ...]:
        x, w, b, residual, bias, skip = inputs
        y, h = group_norm_silu(
            x, w, b, self.groups, self.act, eps=EPS,
            residual=residual, bias=bias, skip=skip, shuffled=self.shuffled, impl=impl,
        )  # fmt: skip
        return (y,) if self.plain else (y, h)

    def eager(self, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
        """What one would write: contiguous NCHW, where torch's statistics are at their best."""
        x, w, b, residual, bias, skip = inputs
        h = pixels_of(x, self.shape) if self.shuffled else x
        h = h if residual is None else h + residual
        h = h if bias is None else h + bias[..., None, None]
        h = h if skip is None else torch.cat([h, skip], 1)
        y = F.group_norm(h, self.groups, w, b, EPS)
        y = F.silu(y) if self.act == "silu" else y
        return (y,) if self.plain else (y, h)


def in_launches(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass takes one launch, or two, at any size."""
    monkeypatch.setattr(plan, "MOST_ALONE", {1: 1 << 40, 2: 0}[count])


def pixels_of(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """phase_shuffle by torch's pixel_shuffle."""
    height, width = shape[2:]
    channels = x.shape[1] // 4
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
    Case((2, 21, 5, 3), 3, residual=True, bias=2, skip=9),  # the second group has channels of both
    Case((1, 40, 12, 13), 4, "none", bias=1, skip=24),
    Case((2, 15, 6, 4), 3, bias=1, skip=7, shuffled=True),
    Case((1, 12, 3, 3), 1, skip=1),
]


def channels_last(t: Tensor) -> Tensor:
    if t.ndim == 4:
        t = t.detach().to(memory_format=torch.channels_last)
    return t.detach().requires_grad_()
