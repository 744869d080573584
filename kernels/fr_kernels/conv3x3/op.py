"""The 3x3 convolution as an operator: schema, fake, autograd, public function."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fr_kernels.conv3x3 import plan, reference
from fr_kernels.dispatch import Impl, declare_launches, resolve


@torch.library.custom_op("fr_kernels::conv3x3", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    padding: int,
    packed: Tensor | None,
    impl: str,
) -> Tensor:
    unfit = plan.unfit(x, weight, (bias, residual, packed))
    if impl == Impl.AUTO and x.device.type == "cpu":
        unfit = unfit or plan.slow(x, weight, padding) or plan.inexact()
    if resolve("conv3x3", impl, (x, weight), (Impl.CPU,), unfit_on_cpu=unfit) is Impl.CPU:
        from fr_kernels.conv3x3 import cpu_impl

        return cpu_impl.conv3x3(x, weight, bias, residual, padding, packed)
    return reference.conv3x3(x, weight, bias, residual, padding)


@torch.library.custom_op("fr_kernels::conv3x3_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.conv3x3_backward(grad, x, weight, padding)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    padding: int,
    packed: Tensor | None,
    impl: str,
) -> Tensor:
    height, width = (side + 2 * padding - 2 for side in x.shape[2:])
    return x.new_empty(x.shape[0], len(weight), height, width).to(memory_format=torch.channels_last)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, ctx.padding, *_ = inputs
    ctx.biased, ctx.residual = bias is not None, residual is not None
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = _backward(grad, x, weight, ctx.padding)
    to_residual = grad if ctx.residual else None
    return dx, dweight, dbias if ctx.biased else None, to_residual, None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
# torch's own on a GPU: cuDNN adds a bias in a launch of its own.
declare_launches("conv3x3", lambda x, weight, *added: 1 + sum(t is not None for t in added[:2]))
declare_launches("conv3x3_backward", lambda *_: 3)


@register_flop_formula(torch.ops.fr_kernels.conv3x3)
def _flops(x: Any, weight: Any, bias: Any, residual: Any, padding: int, *_: Any, **__: Any) -> int:
    """Of the plain formula, whatever an implementation saves."""
    batch, inputs, height, width = x
    return 18 * batch * inputs * weight[0] * (height + 2 * padding - 2) * (width + 2 * padding - 2)


@register_flop_formula(torch.ops.fr_kernels.conv3x3_backward)
def _backward_flops(grad: Any, x: Any, weight: Any, padding: int, *_: Any, **__: Any) -> int:
    return 2 * _flops(x, weight, None, None, padding)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    padding: int = 1,
    packed: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """A 3x3 convolution with stride 1 in channels_last (formula: `reference.py`).

    On a CPU with AVX2 in float32 it runs Winograd's F(4x4, 3x3) in C++ (Lavin & Gray 2016), on dense pictures as near
    to float64 as oneDNN's direct convolution, and two to three times as fast at 64 to 128 channels (two cores of a
    Zen 3); elsewhere torch's own, with AVX-512 too (`plan.inexact`). Its error is one of whole tiles: beside large
    values, zeros come out as up to 1e-6 of them, and a NaN or infinity spoils its tile of 4 x 4 outputs.

    Args:
        x: [B, C, H, W], floating point, any strides; channels_last is read without a copy. H and W at least 3 - 2
            padding.
        weight: [O, C, 3, 3] in the dtype of `x`.
        bias: [O], in the dtype of `x`.
        residual: added to the result, in its shape and dtype.
        padding: 0 or 1, of zeros.
        packed: `pack_conv3x3(weight)`, which else is made in each call.
        impl: "auto", "reference" or "cpu" (float32 on a CPU, 48 input channels, and a C++ compiler).

    Returns:
        [B, O, H + 2 padding - 2, W + 2 padding - 2] in the dtype of `x`, channels_last; differentiable in x, weight,
        bias and residual.

    Raises:
        ValueError: a shape, dtype or `padding` does not fit; `packed` is not of such a weight.
        KernelUnavailableError: `impl` cannot run here.
    """
    if padding not in (0, 1):
        raise ValueError(f"padding is {padding}; allowed: 0 and 1")
    if x.ndim != 4 or min(x.shape[2:]) < 3 - 2 * padding or not x.is_floating_point():
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype}; expected floating point [B, C, H, W], "
            f"H and W at least {3 - 2 * padding}"
        )
    if weight.ndim != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or weight.dtype != x.dtype:
        raise ValueError(
            f"weight is {tuple(weight.shape)} {weight.dtype}; "
            f"expected [O, {x.shape[1]}, 3, 3] {x.dtype} as x"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        raise ValueError(
            f"bias is {tuple(bias.shape)} {bias.dtype}; expected [{len(weight)}] {x.dtype} as x"
        )
    height, width = (side + 2 * padding - 2 for side in x.shape[2:])
    shape = (x.shape[0], len(weight), height, width)
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual is {tuple(residual.shape)} {residual.dtype}; expected {shape} {x.dtype}"
        )
    return _forward(x, weight, bias, residual, padding, packed, impl)


def conv3x3_on_cpu(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `conv3x3` would choose its CPU form, for which a weight is worth packing; arguments as there."""
    if x.device.type != "cpu" or plan.unfit(x, weight, ()) or plan.slow(x, weight, padding):
        return False
    from fr_kernels.native import obstacle

    return not (obstacle("conv3x3") or plan.inexact())


def pack_conv3x3(weight: Tensor) -> Tensor:
    """What the CPU's form of `conv3x3` reads in place of a weight, made once: 4 times its size.

    Args:
        weight: [O, C, 3, 3] on the CPU.

    Returns:
        float32, in the order of this machine's vectors: not for keeping.

    Raises:
        KernelUnavailableError: there is no C++ compiler.
    """
    from fr_kernels.conv3x3 import cpu_impl

    return cpu_impl.pack(weight)
