"""Settling a picture as an operator: schema, fake, autograd, public function."""

from typing import Any

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.settle import reference


def _triton(impl: str, tensors: tuple[Tensor | None, ...]) -> bool:
    given = [tensor for tensor in tensors if tensor is not None]
    wide = any(tensor.dtype == torch.float64 for tensor in given)
    unfit = "its kernels do not compute in float64" if wide else ""
    return resolve("settle", impl, given, (Impl.TRITON,), unfit) is Impl.TRITON


@torch.library.custom_op("fr_kernels::settle", mutates_args=())
def _forward(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: bool, shuffled: bool, impl: str
) -> Tensor:
    if _triton(impl, (x, residual, bias)):
        from fr_kernels.settle import triton_impl

        return triton_impl.settle(x, residual, bias, pad, shuffled)
    return reference.settle(x, residual, bias, pad, shuffled)


@torch.library.custom_op("fr_kernels::settle_backward", mutates_args=())
def _backward(grad: Tensor, bias: Tensor, pad: bool, impl: str) -> Tensor:
    if _triton(impl, (grad, bias)):
        from fr_kernels.settle import triton_backward

        return triton_backward.settle_backward(grad, bias, pad)
    return reference.settle_backward(grad, bias, pad)


@_forward.register_fake
def _(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: bool, shuffled: bool, impl: str
) -> Tensor:
    batch, channels, height, width = x.shape
    if shuffled:
        channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
    shape = (batch, channels, height + pad, width + pad)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@_backward.register_fake
def _(grad: Tensor, bias: Tensor, pad: bool, impl: str) -> Tensor:
    return bias.new_empty(bias.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, residual, bias, ctx.pad, ctx.shuffled, ctx.impl = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(bias)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (bias,) = ctx.saved_tensors
    dbias = None if bias is None else _backward(grad, bias, ctx.pad, ctx.impl)
    dy = reference.cropped(grad) if ctx.pad else grad
    # Without a shuffle dx is dy itself: no launch.
    shuffled_back = torch.ops.fr_kernels.phase_shuffle_backward
    dx = shuffled_back(dy, ctx.impl) if ctx.shuffled else dy
    return dx, dy if ctx.residual else None, dbias, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("settle", lambda *_: 1)
declare_launches("settle_backward", lambda *_: 2)
declare_no_products(torch.ops.fr_kernels.settle)
declare_no_products(torch.ops.fr_kernels.settle_backward)


def settle(
    x: Tensor,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    pad: bool = False,
    shuffled: bool = False,
    impl: str = "auto",
) -> Tensor:
    """y = x + residual + bias, padded below and to the right, in channels_last (ours; formula: `reference.py`).

    For a picture that no `group_norm_silu` settles. The sum is in float32 (float64 for float64), rounded once.

    Args:
        x: [B, C, H, W], float16, bfloat16, float32 or float64, any strides; channels_last is read without a copy.
            With `shuffled` [B, 4C, H/2 + 1, W/2 + 1].
        residual: [B, C, H, W], the dtype of `x`.
        bias: [C], any floating dtype, added to every pixel (of the convolution that made `x`).
        pad: add one row of zeros below and one column of zeros to the right: F.pad(y, (0, 1, 0, 1)).
        shuffled: x is the output of a folded nearest-2x upsample, and phase_shuffle(x) takes its place.
        impl: "auto", "reference" or "triton" (no float64).

    Returns:
        [B, C, H, W], with `pad` [B, C, H + 1, W + 1], channels_last, the dtype of `x`. Differentiable in every tensor.

    Raises:
        ValueError: a shape or dtype does not fit, or nothing is asked for.
        KernelUnavailableError: `impl` cannot run here.
    """
    if residual is None and bias is None and not pad and not shuffled:
        raise ValueError("nothing to settle; give residual, bias, pad or shuffled")
    _check(x, residual, bias, shuffled)
    return _forward(x, residual, bias, pad, shuffled, impl)


def _check(x: Tensor, residual: Tensor | None, bias: Tensor | None, shuffled: bool) -> None:
    expected = "[B, 4C, H/2 + 1, W/2 + 1]" if shuffled else "[B, C, H, W]"
    least, phases = (2, 4) if shuffled else (1, 1)
    fits = x.ndim == 4 and x.shape[1] % phases == 0 and min(x.shape[1], *x.shape[2:]) >= least
    if not fits or not x.is_floating_point():
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype}; expected {expected}, floating, H and W at least 1"
        )
    batch, channels, height, width = x.shape
    if shuffled:
        channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
    shape = (batch, channels, height, width)
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype}; expected {shape} {x.dtype}"
        )
    if bias is not None and (bias.shape != (channels,) or not bias.is_floating_point()):
        raise ValueError(
            f"bias is {tuple(bias.shape)} {bias.dtype}; expected [{channels}], floating"
        )
