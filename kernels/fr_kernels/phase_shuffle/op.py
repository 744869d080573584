"""The shifted pixel shuffle as an operator: schema, fake, autograd, public function."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.phase_shuffle import reference


@torch.library.custom_op("fr_kernels::phase_shuffle", mutates_args=())
def _forward(y: Tensor, impl: str) -> Tensor:
    if resolve("phase_shuffle", impl, (y,), (Impl.TRITON,)) is Impl.TRITON:
        from fr_kernels.phase_shuffle import triton_impl

        return triton_impl.phase_shuffle(y)
    return reference.phase_shuffle(y)


@torch.library.custom_op("fr_kernels::phase_shuffle_backward", mutates_args=())
def _backward(grad: Tensor, impl: str) -> Tensor:
    if resolve("phase_shuffle", impl, (grad,), (Impl.TRITON,)) is Impl.TRITON:
        from fr_kernels.phase_shuffle import triton_impl

        return triton_impl.phase_shuffle_backward(grad)
    return reference.phase_shuffle_backward(grad)


@_forward.register_fake
def _(y: Tensor, impl: str) -> Tensor:
    b, c, h, w = y.shape
    shape = (b, c // 4, 2 * (h - 1), 2 * (w - 1))
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)


@_backward.register_fake
def _(grad: Tensor, impl: str) -> Tensor:
    b, c, h, w = grad.shape
    shape = (b, 4 * c, h // 2 + 1, w // 2 + 1)
    return torch.empty(
        shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.impl = inputs[1]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _backward(grad, ctx.impl), None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("phase_shuffle", lambda *_: 1)
declare_launches("phase_shuffle_backward", lambda *_: 1)
declare_no_products(torch.ops.fr_kernels.phase_shuffle)
declare_no_products(torch.ops.fr_kernels.phase_shuffle_backward)


def phase_shuffle(y: Tensor, *, impl: str = "auto") -> Tensor:
    """Gather the four phases of a folded nearest-2x upsample into one picture (ours; formula: `reference.py`).

    Args:
        y: [B, 4C, H+1, W+1], any dtype and strides; channels_last is read without a copy. The output of the folded
            2x2 convolution, its channels phase-major.
        impl: "auto", "reference" or "triton".

    Returns:
        [B, C, 2H, 2W], channels_last, the dtype of `y`; equal bit for bit in every implementation.

    Raises:
        ValueError: the shape does not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    if y.ndim != 4 or y.shape[1] % 4 or min(y.shape[2:]) < 1:
        raise ValueError(f"y is {tuple(y.shape)}; expected [B, 4C, H+1, W+1]")
    return _forward(y, impl)
