"""GEGLU as an operator: schema, fake, autograd, public function."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.geglu import reference


def _triton(impl: str, *given: Tensor) -> bool:
    wide = any(tensor.dtype == torch.float64 for tensor in given)
    unfit = "its kernels do not compute in float64" if wide else ""
    return resolve("geglu", impl, given, (Impl.TRITON,), unfit) is Impl.TRITON


@torch.library.custom_op("fr_kernels::geglu", mutates_args=())
def _forward(x: Tensor, impl: str) -> Tensor:
    if _triton(impl, x):
        from fr_kernels.geglu import triton_impl

        return triton_impl.geglu(x)
    return reference.geglu(x)


@torch.library.custom_op("fr_kernels::geglu_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, impl: str) -> Tensor:
    if _triton(impl, grad, x):
        from fr_kernels.geglu import triton_impl

        return triton_impl.geglu_backward(grad, x)
    return reference.geglu_backward(grad, x)


@_forward.register_fake
def _(x: Tensor, impl: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@_backward.register_fake
def _(grad: Tensor, x: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.impl = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return _backward(grad, x, ctx.impl), None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("geglu", lambda *_: 1)
declare_launches("geglu_backward", lambda *_: 1)
declare_no_products(torch.ops.fr_kernels.geglu)
declare_no_products(torch.ops.fr_kernels.geglu_backward)


def geglu(x: Tensor, *, impl: str = "auto") -> Tensor:
    """value * gelu(gate) of value and gate side by side (Shazeer 2020, eq 6; formula: `reference.py`).

    The exact GELU with the error function, as in diffusers' `GEGLU`, in float32 (float64 for float64); rounded once.

    Args:
        x: [..., 2D], value first; float16, bfloat16, float32 or float64, any strides; contiguous is read without a
            copy.
        impl: "auto", "reference" or "triton" (no float64).

    Returns:
        [..., D], contiguous, the dtype of `x`.

    Raises:
        ValueError: shape or dtype does not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    if x.ndim < 1 or x.shape[-1] < 2 or x.shape[-1] % 2 or not x.is_floating_point():
        raise ValueError(f"x is {tuple(x.shape)} {x.dtype}; expected [..., 2D], floating point")
    return _forward(x, impl)
