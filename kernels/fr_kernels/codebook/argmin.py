"""The paper's differentiable argmin (LAFR, appendix A.2.2), corrected: schema, fake, autograd, public function."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fr_kernels.codebook import reference
from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve


class ArgminResult(NamedTuple):
    """Result of `differentiable_argmin`."""

    value: Tensor
    """The index as a float, or the soft index, in the dtype of x: float16 holds whole numbers up to 2048, bfloat16
    up to 256. Carries the gradient."""
    indices: Tensor
    """int32, the index itself."""


def _triton(impl: str, x: Tensor) -> bool:
    unfit = "its kernels do not compute in float64" if x.dtype == torch.float64 else ""
    return resolve("differentiable_argmin", impl, (x,), (Impl.TRITON,), unfit) is Impl.TRITON


@torch.library.custom_op("fr_kernels::differentiable_argmin", mutates_args=())
def _forward(x: Tensor, beta: float, hard: bool, impl: str) -> tuple[Tensor, Tensor]:
    if _triton(impl, x):
        from fr_kernels.codebook import triton_argmin

        return triton_argmin.differentiable_argmin(x, beta, hard)
    return reference.differentiable_argmin(x, beta, hard)


@torch.library.custom_op("fr_kernels::differentiable_argmin_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, beta: float, impl: str) -> Tensor:
    if _triton(impl, x):
        from fr_kernels.codebook import triton_argmin

        return triton_argmin.differentiable_argmin_backward(grad, x, beta)
    return reference.differentiable_argmin_backward(grad, x, beta)


@_forward.register_fake
def _(x: Tensor, beta: float, hard: bool, impl: str) -> tuple[Tensor, Tensor]:
    shape = x.shape[:-1]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, beta: float, impl: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.beta, _, ctx.impl = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, None, None]:
    return _backward(grad, ctx.saved_tensors[0], ctx.beta, ctx.impl), None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("differentiable_argmin", lambda *_: 1)
declare_launches("differentiable_argmin_backward", lambda *_: 1)
declare_no_products(torch.ops.fr_kernels.differentiable_argmin)
declare_no_products(torch.ops.fr_kernels.differentiable_argmin_backward)


def differentiable_argmin(
    x: Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    beta: float = 1.0,
    straight_through: bool = True,
    impl: str = "auto",
) -> ArgminResult:
    """The index of the least element as a float with a gradient (LAFR, A.2.2; argmin where the paper prints argmax).

    Backward, either way: dx_k = g (-beta) w_k (k - s), w = softmax(-beta x), s = sum_k w_k k, computed in float32
    (float64 for float64). x alone is kept for it. The number of an element is its meaning here: another order of
    the elements is another gradient. For distances to a codebook `soft_lookup` does the same without their matrix.

    Args:
        x: any shape and strides, float16, bfloat16, float32 or float64, no NaN.
        dim: the dimension to reduce; None: x flattened.
        keepdim: keep reduced dimensions, of size 1.
        beta: inverse temperature, > 0, in 1 / unit of x. The paper gives none.
        straight_through: forward gives the index; if False the soft index s.
        impl: "auto", "reference" or "triton" (no float64).

    Returns:
        (value, indices); ties go to the lowest index.

    Raises:
        ValueError: dtype, dim or beta do not fit, or nothing to choose from.
        KernelUnavailableError: `impl` cannot run here.
    """
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; allowed: floating point")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be > 0")
    if dim is not None and not -max(x.ndim, 1) <= dim < max(x.ndim, 1):
        raise ValueError(f"dim is {dim}; allowed for {x.ndim} dimensions: None or a dimension")
    rows = x.reshape(-1) if dim is None or not x.ndim else x.movedim(dim, -1)
    if not rows.shape[-1]:
        raise ValueError(f"x is {tuple(x.shape)}; the argmin of nothing over dim={dim}")
    value, index = _forward(rows, beta, straight_through, impl)
    if keepdim:
        kept = [1 if dim is None or i == dim % x.ndim else n for i, n in enumerate(x.shape)]
        value, index = value.reshape(kept), index.reshape(kept)
    return ArgminResult(value, index)
