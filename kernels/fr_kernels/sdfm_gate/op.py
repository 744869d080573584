"""HDRFace's feature gate as an operator: schema, fake, autograd, public function."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fr_kernels.dispatch import Impl, declare_launches, resolve
from fr_kernels.sdfm_gate import reference
from fr_kernels.sdfm_gate.reference import GateState, SdfmWeights

MOST_CHANNELS = 4096
"""One program of the kernels holds whole tokens."""


def _triton(impl: str, f_sr: Tensor, f_lr: Tensor, weights: Sequence[Tensor]) -> bool:
    unfit = ""
    if f_sr.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        unfit = f"its kernels do not compute in {f_sr.dtype}"
    elif f_sr.shape[2] > MOST_CHANNELS:
        unfit = f"C is {f_sr.shape[2]}, and its kernels hold at most {MOST_CHANNELS} channels"
    tensors = (f_sr, f_lr, *weights)
    return resolve("sdfm_gate", impl, tensors, (Impl.TRITON,), unfit) is Impl.TRITON


def _plain(tensor: Tensor) -> torch.autocast:
    """Autocast off: it would compute the matrix products in a dtype that nobody asked for."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.library.custom_op("fr_kernels::sdfm_gate", mutates_args=())
def _forward(
    f_sr: Tensor, f_lr: Tensor, weights: Sequence[Tensor], impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with _plain(f_sr):
        if _triton(impl, f_sr, f_lr, weights):
            from fr_kernels.sdfm_gate import triton_impl

            out, state = triton_impl.sdfm_gate(f_sr, f_lr, weights)
        else:
            out, state = reference.sdfm_gate_with_state(f_sr, f_lr, SdfmWeights(*weights))
    stats, token, channel, hidden = state
    return out.contiguous(), stats, token, channel, hidden


@torch.library.custom_op("fr_kernels::sdfm_gate_backward", mutates_args=())
def _backward(
    grad: Tensor,
    f_sr: Tensor,
    f_lr: Tensor,
    weights: Sequence[Tensor],
    state: Sequence[Tensor],
    impl: str,
) -> list[Tensor]:
    """Gradients to f_sr, f_lr, [norm weight; bias], channel w1, b1, w2, b2, token w1, [token b1; w2; b2]."""
    with _plain(f_sr):
        if _triton(impl, f_sr, f_lr, weights):
            from fr_kernels.sdfm_gate import triton_backward

            return triton_backward.sdfm_gate_backward(grad, f_sr, f_lr, weights, GateState(*state))
        given = (grad, f_sr, f_lr, SdfmWeights(*weights), GateState(*state))
        dsr, dlr, d = reference.sdfm_gate_backward(*given)
    norm = torch.cat([d.norm_weight, d.norm_bias])
    token = torch.cat([d.token_b1, d.token_w2[0], d.token_b2])
    return [dsr.contiguous(), dlr.contiguous(), norm, *d[2:7], token]


@_forward.register_fake
def _(
    f_sr: Tensor, f_lr: Tensor, weights: Sequence[Tensor], impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, width = f_sr.shape
    sizes = ((batch, 4, tokens), (batch, tokens), (batch, width), (batch, weights[2].shape[0]))
    dtype = reference.wide_dtype(f_sr)
    stats, token, channel, hidden = (f_sr.new_empty(size, dtype=dtype) for size in sizes)
    return f_sr.new_empty(f_sr.shape), stats, token, channel, hidden


@_backward.register_fake
def _(
    grad: Tensor,
    f_sr: Tensor,
    f_lr: Tensor,
    weights: Sequence[Tensor],
    state: Sequence[Tensor],
    impl: str,
) -> list[Tensor]:
    width, units = f_sr.shape[2], weights[2].shape[0]
    alike = (f_sr, f_lr, *weights[2:7])
    dsr, dlr, *whole = (f_sr.new_empty(tensor.shape) for tensor in alike)
    return [dsr, dlr, f_sr.new_empty(2 * width), *whole, f_sr.new_empty(2 * units + 1)]


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Sequence[Tensor], str], output: tuple[Tensor, ...]
) -> None:
    f_sr, f_lr, weights, ctx.impl = inputs
    ctx.save_for_backward(f_sr, f_lr, *weights, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradient(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, list[Tensor], None]:
    f_sr, f_lr, *rest = ctx.saved_tensors
    weights, state = rest[:10], rest[10:]
    dsr, dlr, norm, *whole, token = _backward(grad, f_sr, f_lr, weights, state, ctx.impl)
    units = weights[2].shape[0]
    b1, w2, b2 = token.split([units, units, 1])
    return dsr, dlr, [*norm.chunk(2), *whole, b1, w2[None], b2], None


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("sdfm_gate", lambda *_: 3)
# 16-bit sums and gradients of the small layers are rounded by five more copies.
declare_launches("sdfm_gate_backward", lambda grad, *_: 19 if grad.dtype is torch.float32 else 24)


@register_flop_formula(torch.ops.fr_kernels.sdfm_gate)
def _flops(
    f_sr_shape: Sequence[int],
    f_lr_shape: Sequence[int],
    weights_shape: Sequence[Sequence[int]],
    *_: Any,
    **__: Any,
) -> int:
    """The matrix products of both MLPs."""
    token, channel = _mlp_flops(f_sr_shape, weights_shape[2][0])
    return token + channel


@register_flop_formula(torch.ops.fr_kernels.sdfm_gate_backward)
def _flops_backward(
    grad_shape: Sequence[int],
    f_sr_shape: Sequence[int],
    f_lr_shape: Sequence[int],
    weights_shape: Sequence[Sequence[int]],
    *_: Any,
    **__: Any,
) -> int:
    """Twice the forward's, and the token MLP's hidden layer once more: it is computed again, not kept."""
    token, channel = _mlp_flops(f_sr_shape, weights_shape[2][0])
    return 3 * token + 2 * channel


def _mlp_flops(shape: Sequence[int], units: int) -> tuple[int, int]:
    """(token MLP, channel MLP) of the forward."""
    batch, tokens, width = shape
    token = 2 * batch * tokens * (3 * width * units + units)
    return token, 2 * batch * (3 * width * units + units * width)


def sdfm_gate(f_sr: Tensor, f_lr: Tensor, weights: SdfmWeights, *, impl: str = "auto") -> Tensor:
    """Fuse the features of a restored and a degraded picture (HDRFace, arXiv 2605.14821, equations 3 to 7).

    Both are layer-normed, and blended by the clamped product of a channel gate and a token gate. Formula:
    `reference.py`.

    Args:
        f_sr: [B, N, C], features of the restored picture; float32, float16, bfloat16 (or float64, reference only).
        f_lr: features of the degraded picture, as `f_sr`.
        weights: the learned tensors, of the features' dtype and device.
        impl: "auto", "reference" or "triton".

    Returns:
        [B, N, C], contiguous, the features' dtype.

    Raises:
        ValueError: a shape or a dtype does not fit.
        KernelUnavailableError: `impl` cannot run here, or its kernels do not take these arguments.
    """
    _check(f_sr, f_lr, weights)
    return _forward(f_sr, f_lr, list(weights), impl)[0]


def _check(f_sr: Tensor, f_lr: Tensor, weights: SdfmWeights) -> None:
    if f_sr.ndim != 3 or not f_sr.shape[1] or not f_sr.shape[2]:
        raise ValueError(f"f_sr is {tuple(f_sr.shape)}; expected [B, N, C] with N, C >= 1")
    if f_lr.shape != f_sr.shape:
        raise ValueError(f"f_lr is {tuple(f_lr.shape)}; expected f_sr's {tuple(f_sr.shape)}")
    width, units = f_sr.shape[2], len(weights.channel_b1)
    expected = {
        "norm_weight": (width,),
        "norm_bias": (width,),
        "channel_w1": (units, 3 * width),
        "channel_b1": (units,),
        "channel_w2": (width, units),
        "channel_b2": (width,),
        "token_w1": (units, 3 * width),
        "token_b1": (units,),
        "token_w2": (1, units),
        "token_b2": (1,),
    }
    for name, tensor in weights._asdict().items():
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}; expected {expected[name]} for C = {width}, H = {units}"
            )
    for name, tensor in {"f_lr": f_lr, **weights._asdict()}.items():
        if tensor.dtype != f_sr.dtype:
            raise ValueError(f"{name} is {tensor.dtype}; expected f_sr's {f_sr.dtype}")
    if not f_sr.is_floating_point():
        raise ValueError(f"f_sr is {f_sr.dtype}; expected a floating dtype")
