"""What a model launches and multiplies, counted on the meta device: no weights, no GPU, a second or two."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fr_kernels.dispatch import declared_launches

ATTENTION = "scaled_dot_product_attention"
# Shapes, strides and bare memory: no launch.
_FREE = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "select", "slice",
    "split", "split_with_sizes", "chunk", "unflatten", "flatten", "alias", "detach", "as_strided", "unbind", "empty",
    "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_reshape_alias", "movedim", "narrow", "view_as",
    "lift_fresh", "promote_types",
}  # fmt: skip


@dataclass
class Trace:
    """Work of one call."""

    launches: Counter[str] = field(default_factory=Counter[str])
    """GPU launches by operation: one for each of torch's own, those declared for each fr_kernels op."""
    flops: int = 0
    """Products and sums of convolutions, matrix products and attention: torch's count. 1 MAC = 2 FLOP."""

    @property
    def total(self) -> int:
        """All launches."""
        return self.launches.total()


class _Launches(TorchDispatchMode):
    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "fr_kernels":
            self.counted[name] += declared_launches(name, *args)
        elif func.namespace == "aten" and name not in _FREE:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


class _Attention(TorchFunctionMode):
    """Counts attention as one launch: on the meta device torch would take it apart."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != ATTENTION:
            return func(*args, **kwargs)
        q, k, v, *_ = args if args else (kwargs[name] for name in ("query", "key", "value"))
        batch, heads, rows, width = q.shape
        self.trace.launches[ATTENTION] += 1
        self.trace.flops += 2 * batch * heads * rows * k.shape[-2] * (width + v.shape[-1])
        # The strides that flash kernels return: heads beside their channels.
        out = q.new_empty(batch, rows, heads, v.shape[-1])
        return out.transpose(1, 2)


@torch.no_grad()
def trace(call: Callable[[], Tensor]) -> Trace:
    """Count one call; its tensors and weights should be on the meta device."""
    counted = Trace()
    flops = FlopCounterMode(display=False)
    with flops, _Launches(counted.launches), _Attention(counted):
        call()
    counted.flops += flops.get_total_flops()
    return counted
