"""Which implementation of an op runs: asked for by name, or chosen once and said.

An explicit request never falls back. `auto` takes the op's fastest implementation that these tensors can use,
and logs (logger `fr_kernels`, level INFO, once per op, choice and reason) what it took and why.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_LOG = logging.getLogger("fr_kernels")
_said: set[str] = set()


class Impl(StrEnum):
    """The value of every op's `impl` argument."""

    AUTO = "auto"
    REFERENCE = "reference"
    TRITON = "triton"
    CUDA = "cuda"
    CPU = "cpu"
    """C++ that is compiled for the CPU at hand (`fr_kernels.native`)."""


class KernelUnavailableError(RuntimeError):
    """An implementation was asked for by name and cannot run here."""


def interpreting() -> bool:
    """Whether Triton kernels are interpreted on the CPU (`TRITON_INTERPRET=1` before the first kernel)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def resolve(
    op: str,
    impl: str,
    tensors: Sequence[Tensor],
    offered: Sequence[Impl],
    unfit: str = "",
    unfit_on_cpu: str = "",
) -> Impl:
    """The implementation to run: never AUTO.

    Args:
        op: name for messages, such as "group_norm_silu".
        impl: an `Impl` value.
        tensors: the op's tensor arguments; all on one device.
        offered: what the op has besides REFERENCE, fastest first.
        unfit: why the compiled kernels cannot take these arguments; empty when they can.
        unfit_on_cpu: the same of the CPU's alone.

    Raises:
        ValueError: `impl` is not an `Impl` value or the op does not have it.
        KernelUnavailableError: asked for by name, but it cannot run on these tensors.
    """
    known = (Impl.AUTO, Impl.REFERENCE, *offered)
    if impl not in known:
        allowed = ", ".join(repr(str(value)) for value in known)
        raise ValueError(f"impl of {op} is {impl!r}; allowed: {allowed}")
    wanted = Impl(impl)
    if wanted is Impl.REFERENCE:
        return wanted
    if wanted is not Impl.AUTO:
        more = unfit_on_cpu if wanted is Impl.CPU else ""
        if reason := unfit or more or _obstacle(op, wanted, tensors, automatic=False):
            raise KernelUnavailableError(
                f'{op}: impl="{wanted}" was asked for, but {reason}; impl="reference" runs anywhere'
            )
        return wanted
    reasons: list[str] = []
    for candidate in offered:
        more = unfit_on_cpu if candidate is Impl.CPU else ""
        if not (reason := unfit or more or _obstacle(op, candidate, tensors, automatic=True)):
            return _say(op, candidate, f"its arguments are on {_place(tensors)}")
        reasons.append(f"not {candidate}: {reason}")
    return _say(op, Impl.REFERENCE, "; ".join(reasons) or "it has no other implementation")


def _place(tensors: Sequence[Tensor]) -> str:
    return "a GPU" if tensors[0].is_cuda else f"the {tensors[0].device}"


def _obstacle(op: str, impl: Impl, tensors: Sequence[Tensor], *, automatic: bool) -> str:
    """Why `impl` cannot run on these tensors; empty when it can."""
    if impl is Impl.CPU:
        return _obstacle_on_cpu(op, tensors)
    on_gpu = all(t.is_cuda for t in tensors)
    if impl is Impl.TRITON:
        if not _has("triton"):
            return "Triton is not installed (pip install triton)"
        # The interpreter is for tests: thousands of times slower, so never chosen, only asked for.
        if not on_gpu and (automatic or not interpreting()):
            return f"the tensors are on {tensors[0].device}, not on a GPU"
        return ""
    if not (_has("cuda") and _has("cuda.core")):
        return 'cuda-python is not installed (pip install "fr-deploy[cuda]")'
    return "" if on_gpu else f"the tensors are on {tensors[0].device}, not on a GPU"


def _obstacle_on_cpu(op: str, tensors: Sequence[Tensor]) -> str:
    wrong = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if wrong is not None:
        return f"the tensors are on {wrong}, not on the CPU"
    from fr_kernels.native import obstacle

    return obstacle(op)


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _say(op: str, impl: Impl, reason: str) -> Impl:
    say_once(f"{op} runs {impl}: {reason}")
    return impl


def say_once(message: str) -> None:
    """Log a choice that was made for the caller (logger `fr_kernels`, level INFO), the first time alone."""
    if message not in _said:
        _said.add(message)
        _LOG.info("%s", message)


LaunchCount = Callable[..., int]
_launches: dict[str, LaunchCount] = {}


def declare_launches(op: str, count: LaunchCount) -> None:
    """Say how many GPU launches one call of the compiled kernels makes, as a function of the op's arguments.

    A test compares it with the launches made, torch's own included, so that no work hides inside an op.
    """
    _launches[op] = count


def declared_launches(op: str, *args: object, **kwargs: object) -> int:
    """Launches of one call; KeyError if the op never declared them."""
    return _launches[op](*args, **kwargs)


def declare_no_products(op: Any) -> None:
    """Say that an op has no matrix product: its FLOP count is 0, as torch's counter has it for norms and copies."""

    def none(*_: object, **__: object) -> int:
        return 0

    register_flop_formula(op)(none)


def ops_with_launches() -> list[str]:
    """Names of all ops that declared their launches, sorted."""
    return sorted(_launches)
