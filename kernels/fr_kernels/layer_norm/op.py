"""Layer normalisation as an operator: schema, fake, autograd, public function."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.layer_norm import reference

MAX_CHANNELS = 2048
"""The kernels hold whole rows in registers."""


class Normed(NamedTuple):
    """Result of `layer_norm`."""

    y: Tensor
    """[..., C], normalised."""
    h: Tensor
    """[..., C], what was normalised: the next residual stream. `x` itself where nothing was added."""


def _triton(impl: str, tensors: tuple[Tensor | None, ...]) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    unfit = ""
    if given[0].shape[-1] > MAX_CHANNELS:
        unfit = f"its kernels take rows of at most {MAX_CHANNELS}, not {given[0].shape[-1]}"
    if any(tensor.dtype == torch.float64 for tensor in given):
        unfit = "its kernels do not compute in float64"
    return resolve("layer_norm", impl, given, (Impl.TRITON,), unfit) is Impl.TRITON


def _plain(residual: Tensor | None, bias: Tensor | None) -> bool:
    """Whether h is x: then the operator returns an empty h, because its outputs may not be its inputs."""
    return residual is None and bias is None


@torch.library.custom_op("fr_kernels::layer_norm", mutates_args=())
def _forward(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    if _triton(impl, (x, residual, bias)):
        from fr_kernels.layer_norm import triton_impl

        y, h = triton_impl.layer_norm(x, residual, bias, eps)
    else:
        y, h = reference.layer_norm(x, residual, bias, eps)
    return y, x.new_empty(0) if _plain(residual, bias) else h


@torch.library.custom_op("fr_kernels::layer_norm_backward", mutates_args=())
def _backward(
    grad: Tensor, h: Tensor, bias: Tensor | None, grad_h: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    if _triton(impl, (grad, h, bias, grad_h)):
        from fr_kernels.layer_norm import triton_backward

        return triton_backward.layer_norm_backward(grad, h, bias, grad_h, eps)
    return reference.layer_norm_backward(grad, h, bias, grad_h, eps)


@_forward.register_fake
def _(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0 if _plain(residual, bias) else x.shape)


@_backward.register_fake
def _(
    grad: Tensor, h: Tensor, bias: Tensor | None, grad_h: Tensor | None, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), h.new_empty(0) if bias is None else bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, bias, ctx.eps, ctx.impl = inputs
    ctx.residual, ctx.plain = residual is not None, _plain(residual, bias)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if ctx.plain else output[1], bias)


def _gradient(ctx: Any, grad: Tensor | None, grad_h: Tensor | None) -> tuple[Tensor | None, ...]:
    h, bias = ctx.saved_tensors
    # Only the residual stream was used.
    grad = torch.zeros_like(h) if grad is None else grad
    dx, dbias = _backward(grad, h, bias, None if ctx.plain else grad_h, ctx.eps, ctx.impl)
    return dx, dx if ctx.residual else None, None if bias is None else dbias, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("layer_norm", lambda *_: 1)
declare_launches("layer_norm_backward", lambda grad, h, bias, *_: 1 + (bias is not None))
declare_no_products(torch.ops.fr_kernels.layer_norm)
declare_no_products(torch.ops.fr_kernels.layer_norm_backward)


def layer_norm(
    x: Tensor,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Normed:
    """y = LayerNorm(h) without weight and bias, h = x + residual + bias (ours; formula: `reference.py`).

    Statistics and arithmetic are in float32 (float64 for float64); h is rounded to the dtype of `x` once, before it
    is normalised. The compiled kernel reads x and residual once and writes h and y once.

    Args:
        x: [..., C], float16, bfloat16, float32 or float64, any strides; contiguous is read without a copy.
        residual: shape and dtype of `x`.
        bias: [C], any floating dtype, added to every row before the norm (of the linear layer that made `x`).
        eps: added to the variance; > 0.
        impl: "auto", "reference" or "triton" (no float64, C up to 2048).

    Returns:
        y and h in the dtype of `x`, contiguous (h is `x` itself where nothing was added). Differentiable in every
        tensor, through both.

    Raises:
        ValueError: a shape, dtype or `eps` does not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    if x.ndim < 1 or x.shape[-1] < 1 or not x.is_floating_point():
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype}; expected [..., C], floating, C at least 1"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype}; "
            f"expected {tuple(x.shape)} {x.dtype} as x"
        )
    if bias is not None and (bias.shape != x.shape[-1:] or not bias.is_floating_point()):
        raise ValueError(
            f"bias is {tuple(bias.shape)} {bias.dtype}; expected [{x.shape[-1]}], floating"
        )
    if not eps > 0:
        raise ValueError(f"eps is {eps}; it must be > 0")
    y, h = _forward(x, residual, bias, eps, impl)
    return Normed(y, x if _plain(residual, bias) else h)
