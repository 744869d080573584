"""Nearest 2x upsampling and a 3x3 convolution, folded, as an operator: schema, fake, autograd, public function."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fr_kernels.dispatch import Impl, declare_launches, resolve
from fr_kernels.upsample_conv import plan, reference


@torch.library.custom_op("fr_kernels::upsample_conv", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None, impl: str
) -> Tensor:
    unfit = plan.unfit(x, weight, bias, packed)
    if impl == Impl.AUTO:
        unfit = unfit or plan.slow(x, len(weight) // 4)
    if resolve("upsample_conv", impl, (x, weight), (Impl.CPU,), unfit_on_cpu=unfit) is Impl.CPU:
        from fr_kernels.upsample_conv import cpu_impl

        return cpu_impl.upsample_conv(x, weight, bias, packed)
    return reference.upsample_conv(x, weight, bias)


@torch.library.custom_op("fr_kernels::upsample_conv_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return reference.upsample_conv_backward(grad, x, weight)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None, impl: str) -> Tensor:
    height, width = x.shape[2:]
    y = x.new_empty(x.shape[0], len(weight) // 4, 2 * height, 2 * width)
    return y.to(memory_format=torch.channels_last)


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, weight.new_empty(weight.shape), weight.new_empty(len(weight) // 4)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *_ = inputs
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = _backward(grad, x, weight)
    return dx, dweight, dbias if ctx.biased else None, None, None


_forward.register_autograd(_gradient, setup_context=_setup_context)
# torch's own on a GPU: cuDNN adds a bias in a launch of its own, and each phase is a copy.
declare_launches("upsample_conv", lambda x, weight, bias, *_: 5 + 2 * (bias is not None))
declare_launches("upsample_conv_backward", lambda *_: 8)


@register_flop_formula(torch.ops.fr_kernels.upsample_conv)
def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Of the plain formula, whatever an implementation saves."""
    batch, inputs, height, width = x
    return 8 * batch * inputs * weight[0] * (height + 1) * (width + 1)


@register_flop_formula(torch.ops.fr_kernels.upsample_conv_backward)
def _backward_flops(grad: Any, x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * _flops(x, weight)


def upsample_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    packed: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Nearest 2x upsampling and a 3x3 convolution as one 2x2 convolution of four phases (ours; formula: reference.py).

    On a CPU in float32 it runs Winograd's F(3x3, 2x2) in C++ (Lavin & Gray 2016) and writes each phase where it
    belongs: nearer to float64 than oneDNN's direct convolution, and in about half its time with the shuffle behind it
    (128 channels of 64 x 64, two cores of a Zen 3: 9 ms in place of 17). Elsewhere torch's convolution and shuffle.
    A NaN or infinity spoils its tile of 3 x 3 positions.

    Args:
        x: [B, C, H, W], floating point, any strides; channels_last is read without a copy.
        weight: [4 O, C, 2, 2] in the dtype of `x`, phase-major, as `fr_deploy.models.fold.fold_upsample` makes it.
        bias: [O], in the dtype of `x`.
        packed: `pack_upsample_conv(weight)`, which else is made in each call.
        impl: "auto", "reference" or "cpu" (float32 on a CPU, and a C++ compiler).

    Returns:
        [B, O, 2H, 2W] in the dtype of `x`, channels_last; differentiable in x, weight and bias.

    Raises:
        ValueError: a shape or dtype does not fit; `packed` is not of such a weight.
        KernelUnavailableError: `impl` cannot run here.
    """
    if x.ndim != 4 or min(x.shape[2:]) < 1 or not x.is_floating_point():
        raise ValueError(
            f"x is {tuple(x.shape)} {x.dtype}; expected floating point [B, C, H, W], H and W at least 1"
        )
    shape = tuple(weight.shape)
    if (
        len(shape) != 4
        or shape[1:] != (x.shape[1], 2, 2)
        or shape[0] % 4
        or weight.dtype != x.dtype
    ):
        raise ValueError(
            f"weight is {shape} {weight.dtype}; expected [4 O, {x.shape[1]}, 2, 2] {x.dtype} as x"
        )
    if bias is not None and (bias.shape != (shape[0] // 4,) or bias.dtype != x.dtype):
        raise ValueError(
            f"bias is {tuple(bias.shape)} {bias.dtype}; expected [{shape[0] // 4}] {x.dtype} as x"
        )
    return _forward(x, weight, bias, packed, impl)


def upsample_conv_on_cpu(x: Tensor, outputs: int) -> bool:
    """Whether `upsample_conv` would choose its CPU form, for which a weight is worth packing.

    Args:
        x: as there; the weight is of its dtype.
        outputs: channels of the result.
    """
    if x.device.type != "cpu" or plan.unfit(x) or plan.slow(x, outputs):
        return False
    from fr_kernels.native import obstacle

    return not obstacle("upsample_conv")


def pack_upsample_conv(weight: Tensor) -> Tensor:
    """What the CPU's form of `upsample_conv` reads in place of a weight, made once: 4 times its size.

    Args:
        weight: [4 O, C, 2, 2] on the CPU.

    Returns:
        float32, in the order of this machine's vectors: not for keeping.

    Raises:
        KernelUnavailableError: there is no C++ compiler.
    """
    from fr_kernels.upsample_conv import cpu_impl

    return cpu_impl.pack(weight)
