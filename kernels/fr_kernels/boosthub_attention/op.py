"""BoostHub attention as an operator: schema, fake, autograd, FLOPs, public function."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fr_kernels.boosthub_attention import reference
from fr_kernels.dispatch import Impl, declare_launches, interpreting, resolve

WIDEST_HEAD = 128
MOST_HEADS = 65_535  # what the third axis of a CUDA grid holds


@torch.library.custom_op("fr_kernels::boosthub_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, and for a backward pass (`keep`) the unscaled hub half and lse; without `keep` these two are empty."""
    tensors = (q, k, v, q_hub, k_hub, v_hub, phi)
    if _impl(impl, tensors) is Impl.TRITON:
        from fr_kernels.boosthub_attention import triton_impl

        return triton_impl.boosthub_attention(*tensors, keep)
    out, hub, lse = reference.boosthub_attention(*tensors)
    return (out, hub, lse) if keep else (out, hub.new_empty(0), lse.new_empty(0))


@torch.library.custom_op("fr_kernels::boosthub_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
    out: Tensor,
    hub: Tensor,
    lse: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (q, k, v, q_hub, k_hub, v_hub, phi)
    if _impl(impl, tensors) is Impl.TRITON:
        from fr_kernels.boosthub_attention import triton_impl

        return triton_impl.boosthub_attention_backward(grad, *tensors, out, hub, lse)
    return reference.boosthub_attention_backward(grad, *tensors)


@_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    b, rows, h, d = q.shape
    sums = torch.promote_types(q.dtype, torch.float32)
    hub = q.new_empty((b, rows, h, d) if keep else 0)
    lse = q.new_empty((b, 2, h, rows) if keep else 0, dtype=sums)
    return q.new_empty((b, rows, 2, h, d)), hub, lse


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
    *_: Any,
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (q, k, v, q_hub, k_hub, v_hub, phi))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.keep, ctx.impl = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if not ctx.keep:
        raise RuntimeError("boosthub_attention ran with keep=False: it kept nothing for a gradient")
    return (*_backward(grad, *ctx.saved_tensors, ctx.impl), None, None)


_forward.register_autograd(_gradient, setup_context=_setup_context)
# Arguments whose last dimension is not contiguous are copied, one more launch each. The backward: gradients to the
# queries, gradients to keys and values, and torch's sum for phi.
declare_launches("boosthub_attention", lambda *_: 1)
declare_launches("boosthub_attention_backward", lambda *_: 3)


@register_flop_formula(torch.ops.fr_kernels.boosthub_attention)
def _flops(q: Any, k: Any, v: Any, q_hub: Any, k_hub: Any, *_: Any, **__: Any) -> int:
    b, rows, h, d = q
    return 4 * b * h * d * rows * (k[1] + k_hub[1])


@register_flop_formula(torch.ops.fr_kernels.boosthub_attention_backward)
def _flops_backward(grad: Any, *shapes: Any, **_: Any) -> int:
    """Five products; the second recomputation of the scores is not credited, as in torch's own formula."""
    return _flops(*shapes) * 5 // 2


def _impl(impl: str, tensors: tuple[Tensor, ...]) -> Impl:
    unfit = _unfit(tensors[0])
    return resolve("boosthub_attention", impl, tensors, (Impl.TRITON,), unfit=unfit)


def _unfit(q: Tensor) -> str:
    """Why the kernels cannot take these arguments; empty when they can."""
    batch, _, heads, width = q.shape
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"its kernels take float16, bfloat16 and float32, not {q.dtype}"
    if q.dtype is torch.bfloat16 and interpreting():
        return "Triton's interpreter gets bfloat16 products wrong"
    if width > WIDEST_HEAD:
        return f"its kernels take heads up to {WIDEST_HEAD} wide, not {width}"
    if batch * heads > MOST_HEADS:
        return f"its kernels take up to {MOST_HEADS} heads times batch, not {batch * heads}"
    return ""


def boosthub_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_hub: Tensor,
    k_hub: Tensor,
    v_hub: Tensor,
    phi: Tensor,
    *,
    impl: str = "auto",
) -> Tensor:
    """Self-attention and BoostHub attention side by side, the hub half times phi (FLIPNET, equations 4 and 5).

    The reference holds [B, H, L, S] scores; the kernels never write them.

    Args:
        q: [B, L, H, D], queries of the self-attention. float16, bfloat16 or float32 (the reference: float64 too).
            Here and below any strides with contiguous last dimension are read without a copy, so slices of one
            stacked projection can be passed; the kernels take D up to 128.
        k: [B, S, H, D], its keys; any S >= 1.
        v: [B, S, H, D], its values.
        q_hub: [B, L, H, D], queries from the restored stream to the low-quality stream.
        k_hub: [B, S_hub, H, D], keys of the low-quality stream; any S_hub >= 1.
        v_hub: [B, S_hub, H, D], its values.
        phi: [], the weight of the hub half; float32 (float64 with float64 tensors), on the same device. A run-time
            value: no recompilation and no synchronisation when it changes. At 0 its gradient is still exact.
        impl: "auto", "reference" or "triton".

    Returns:
        [B, L, 2, H, D], contiguous, the dtype of `q`: `flatten(2)` is the input of one linear layer [W_sa, W_O].
        Differentiable once, in all seven arguments.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    tensors = (q, k, v, q_hub, k_hub, v_hub, phi)
    _check(*tensors)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _forward(*tensors, keep, impl)[0]


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_hub: Tensor, k_hub: Tensor, v_hub: Tensor, phi: Tensor
) -> None:
    if q.ndim != 4 or q.shape[-1] < 1 or not q.is_floating_point():
        raise ValueError(f"q is {q.dtype} {tuple(q.shape)}; expected floating [B, L, H, D], D >= 1")
    if q_hub.shape != q.shape:
        raise ValueError(
            f"q_hub is {tuple(q_hub.shape)}; expected the shape of q, {tuple(q.shape)}"
        )
    for name, keys, values in (("", k, v), ("_hub", k_hub, v_hub)):
        fits = keys.ndim == 4 and (keys.shape[0], *keys.shape[2:]) == (q.shape[0], *q.shape[2:])
        if not fits or keys.shape[1] < 1 or values.shape != keys.shape:
            raise ValueError(
                f"k{name} is {tuple(keys.shape)} and v{name} {tuple(values.shape)}; expected both [B, S, H, D] "
                f"with S >= 1 and B, H, D of q {tuple(q.shape)}"
            )
    wide = torch.promote_types(q.dtype, torch.float32)
    if phi.ndim or phi.dtype != wide:
        raise ValueError(
            f"phi is {phi.dtype} {tuple(phi.shape)}; expected a {wide} scalar, shape ()"
        )
    others = (k, v, q_hub, k_hub, v_hub)
    if any(t.dtype != q.dtype for t in others):
        raise ValueError(f"dtypes are {[t.dtype for t in (q, *others)]}; expected one")
    if any(t.device != q.device for t in (*others, phi)):
        raise ValueError(f"devices are {[str(t.device) for t in (q, *others, phi)]}; expected one")
