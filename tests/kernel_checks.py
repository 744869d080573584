"""What every kernel test asks: error budget, poisoned memory, launches, operator contract."""

import importlib.util
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fr_kernels.budget import budget
from fr_kernels.launch import launches_made, launching

NO_COMPILER = "no C++ compiler: apt install g++"
NO_NVRTC = 'no NVRTC: pip install -e ".[dev]"'
DTYPES = (torch.float32, torch.float16)  # the interpreter's bf16 dot returns garbage
WITHOUT_DOT = (*DTYPES, torch.bfloat16)
"""For kernels that only load, compute element by element, sum and store."""


def has_nvrtc() -> bool:
    """Whether CUDA C++ can be compiled here: cuda-python and NVRTC, and no GPU."""
    names = ("cuda", "cuda.core", "cuda.bindings", "nvidia", "nvidia.cu13")
    return all(importlib.util.find_spec(name) is not None for name in names)


def within_budget(got: Tensor, eager: Tensor, exact: Tensor) -> None:
    """`fr_kernels.budget` is kept."""
    result = budget(got, eager, exact)
    assert result.kept, result


def results(
    call: Callable[..., Any], inputs: Sequence[Tensor], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Outputs of a call, then the gradients to every input, from one gradient to each output.

    dtype: what the gradients to the outputs are rounded to; that of the first input unless it says otherwise.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    outputs = call(*leaves)
    outputs = tuple(outputs) if isinstance(outputs, tuple) else (outputs,)
    torch.manual_seed(1)
    into = [torch.randn(o.shape).to(dtype or inputs[0].dtype).to(o.dtype) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, into)]


def all_within_budget(
    got: Sequence[Tensor], eager: Callable[..., Any], inputs: Sequence[Tensor]
) -> None:
    """`results` of an op, beside those of eager code in the same dtype and in float64, from the same numbers."""
    peers = results(eager, inputs)
    exact = results(eager, [tensor.double() for tensor in inputs], inputs[0].dtype)
    assert len(got) == len(peers) == len(exact)
    for mine, peer, truth in zip(got, peers, exact, strict=True):
        within_budget(mine, peer, truth)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers in every second element of a larger tensor of NaN, its last dimension first in memory."""
    large = torch.full((*tensor.shape[::-1], 2), float("nan"), dtype=tensor.dtype)
    return large[..., 0].permute(*reversed(range(tensor.ndim))).copy_(tensor.detach())


# Elements on either side of fresh memory: no tile of the tests' sizes reaches further.
GUARD = 1 << 16


def guard_byte(dtype: torch.dtype) -> int:
    """What the guard bands hold: a NaN in every floating format that arithmetic does not give; no likely integer."""
    return 0xFF if dtype.is_floating_point else 0x5A


@contextmanager
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Fresh memory is NaN (floats) or the largest value (integers), between guard bands.

    What a kernel forgets to write shows in its result; what it writes outside its outputs and its scratch fails here,
    on leaving.
    """
    plain_empty = torch.empty
    bands: list[tuple[Tensor, Tensor]] = []

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            out = make(*args, **kwargs)
            if launching():  # the interpreter's own
                return out
            size = 1 + sum((n - 1) * step for n, step in zip(out.shape, out.stride(), strict=True))
            size = size if out.numel() else 0
            memory = plain_empty(GUARD + size + GUARD, dtype=out.dtype, device=out.device)
            memory.view(torch.uint8).fill_(guard_byte(out.dtype))
            worst = float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max
            memory[GUARD : GUARD + size] = worst
            bands.append((memory[:GUARD], memory[GUARD + size :]))
            # Not a view: an operator may not return one.
            return out.set_(memory.untyped_storage(), GUARD, out.shape, out.stride())

        return made

    with monkeypatch.context() as patch:
        for name in ("empty", "empty_like", "empty_strided"):
            patch.setattr(torch, name, poison(getattr(torch, name)))
        for name in ("new_empty", "new_empty_strided"):
            patch.setattr(Tensor, name, poison(getattr(Tensor, name)))
        yield
    for place, band in (
        (p, b) for pair in bands for p, b in zip(("before", "after"), pair, strict=True)
    ):
        touched = band.view(torch.uint8) != guard_byte(band.dtype)
        assert not touched.any(), f"written {place} a tensor of {band.dtype}: {touched.sum()} bytes"


# Shapes, strides and bare memory: no launch.
_FREE = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "select",
    "slice", "split", "split_with_sizes", "chunk", "unflatten", "flatten", "alias", "detach", "as_strided", "unbind",
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "movedim", "narrow",
}  # fmt: skip


class _Aten(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in _FREE and not launching():
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def launches(call: Callable[[], object]) -> list[str]:
    """Names of all launches `call` would make on a GPU: Triton kernels and torch's own operations.

    Call the implementation's function (`triton_impl.f`): under the op itself nothing is seen.
    """
    with launches_made() as kernels, _Aten() as aten:
        call()
    return [*(made.name for made in kernels), *aten.names]


def check_operator(op: Any, *args: Any) -> None:
    """torch.library.opcheck: schema, fake, autograd registration, and AOT dispatch."""
    torch.library.opcheck(op, args)


def compiles_whole(function: Callable[..., Any], *args: Any) -> Any:
    """The result under torch.compile(fullgraph=True); any graph break raises."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
