"""Group normalisation as an operator: schema, fake, autograd, public function."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve
from fr_kernels.group_norm_silu import plan, reference

ACTIVATIONS = ("silu", "none")


class Normed(NamedTuple):
    """Result of `group_norm_silu`."""

    y: Tensor
    """[B, C, H, W], normalised and activated."""
    h: Tensor
    """[B, C, H, W], what was normalised: the next residual stream. `x` itself where nothing was added."""


def _chosen(impl: str, tensors: tuple[Tensor | None, ...], offered: tuple[Impl, ...]) -> Impl:
    given = [tensor for tensor in tensors if tensor is not None]
    wide = any(tensor.dtype == torch.float64 for tensor in given)
    unfit = "its kernels do not compute in float64" if wide else ""
    other = next((tensor.dtype for tensor in given if tensor.dtype != torch.float32), None)
    on_cpu = "" if other is None else f"a tensor is {other}, and it computes in float32 alone"
    return resolve("group_norm_silu", impl, given, offered, unfit, on_cpu)


def _plain(*added: Tensor | None, shuffled: bool) -> bool:
    """Whether h is x: then the operator returns an empty h, because its outputs may not be its inputs."""
    return all(tensor is None for tensor in added) and not shuffled


@torch.library.custom_op("fr_kernels::group_norm_silu", mutates_args=())
def _forward(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    bias: Tensor | None,
    skip: Tensor | None,
    shuffled: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    given = (x, w, b, groups, eps, silu, residual, bias, skip, shuffled)
    chosen = _chosen(impl, (x, w, b, residual, bias, skip), (Impl.TRITON, Impl.CPU))
    if chosen is Impl.TRITON:
        from fr_kernels.group_norm_silu import triton_impl

        y, h, statistics = triton_impl.group_norm_silu(*given)
    elif chosen is Impl.CPU:
        from fr_kernels.group_norm_silu import cpu_impl

        y, h, statistics = cpu_impl.group_norm_silu(*given)
    else:
        y, h, statistics = reference.group_norm_silu(*given)
    return y, x.new_empty(0) if _plain(residual, bias, skip, shuffled=shuffled) else h, statistics


@torch.library.custom_op("fr_kernels::group_norm_silu_backward", mutates_args=())
def _backward(
    grad: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    w: Tensor,
    b: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    silu: bool,
    skipped: int,
    shuffled: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = (grad, grad_h, h, w, b, bias, statistics, silu, skipped, shuffled)
    # The CPU's form is a forward pass alone.
    impl = Impl.REFERENCE if impl == Impl.CPU else impl
    if _chosen(impl, (grad, grad_h, h, w, b, bias), (Impl.TRITON,)) is Impl.TRITON:
        from fr_kernels.group_norm_silu import triton_backward

        return triton_backward.group_norm_silu_backward(*given)
    return reference.group_norm_silu_backward(*given)


@_forward.register_fake
def _(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    bias: Tensor | None,
    skip: Tensor | None,
    shuffled: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, height, width = x.shape
    if shuffled:
        height, width = 2 * (height - 1), 2 * (width - 1)
    y = _channels_last(x, (batch, len(w), height, width))
    h = x.new_empty(0) if _plain(residual, bias, skip, shuffled=shuffled) else torch.empty_like(y)
    return y, h, x.new_empty(batch, 3, groups, dtype=reference.wide_dtype(x.dtype))


@_backward.register_fake
def _(
    grad: Tensor,
    grad_h: Tensor | None,
    h: Tensor,
    w: Tensor,
    b: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    silu: bool,
    skipped: int,
    shuffled: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = h.shape
    dskip = _channels_last(h, (batch, skipped, height, width))
    channels -= skipped
    if shuffled:
        channels, height, width = 4 * channels, height // 2 + 1, width // 2 + 1
    dx = _channels_last(h, (batch, channels, height, width))
    dbias = h.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return dx, w.new_empty(w.shape), b.new_empty(b.shape), dbias, dskip


def _channels_last(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, b, _, _, ctx.silu, residual, bias, skip, ctx.shuffled, ctx.impl = inputs
    _, h, statistics = output
    ctx.residual = residual is not None
    ctx.skipped = 0 if skip is None else skip.shape[1]
    ctx.plain = _plain(residual, bias, skip, shuffled=ctx.shuffled)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if ctx.plain else h, w, b, bias, statistics)


def _gradient(
    ctx: Any, grad: Tensor | None, grad_h: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    h, w, b, bias, statistics = ctx.saved_tensors
    # Only the residual stream was used.
    grad = torch.zeros_like(h) if grad is None else grad
    dx, dw, db, dbias, dskip = _backward(
        grad,
        None if ctx.plain else grad_h,
        h,
        w,
        b,
        bias,
        statistics,
        ctx.silu,
        ctx.skipped,
        ctx.shuffled,
        ctx.impl,
    )
    to_residual = dx if ctx.residual else None
    to_bias = None if bias is None else dbias
    to_skip = dskip if ctx.skipped else None
    return dx, dw, db, None, None, None, to_residual, to_bias, to_skip, None, None


def _launches(x: Tensor, w: Tensor, b: Tensor, groups: int, *given: Any) -> int:
    _, _, _, _, _, shuffled, *_ = given
    return plan.launches(x, w, groups, shuffled)


_forward.register_autograd(_gradient, setup_context=_setup_context)
declare_launches("group_norm_silu", _launches)
declare_launches("group_norm_silu_backward", lambda *_: 4)
declare_no_products(torch.ops.fr_kernels.group_norm_silu)
declare_no_products(torch.ops.fr_kernels.group_norm_silu_backward)


def group_norm_silu(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
    act: str = "silu",
    *,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    skip: Tensor | None = None,
    shuffled: bool = False,
    impl: str = "auto",
) -> Normed:
    """y = act(GroupNorm(h)), h = cat(x + residual + bias, skip), in channels_last (ours; formula: `reference.py`).

    Statistics and arithmetic are in float32 (float64 for float64), h is rounded to the dtype of `x` once, before it
    is normalised. The compiled kernels read x, residual and skip once, write h and y once, and read h once more: in one
    launch where a program holds all pixels of its groups, else in two (`plan.py`).

    Args:
        x: [B, C, H, W], float16, bfloat16, float32 or float64, any strides; channels_last is read without a copy.
            With `shuffled` [B, 4C, H/2 + 1, W/2 + 1].
        w, b: [C], with a skip [C + D], the norm's weight and bias, any floating dtype.
        groups: G; divides the channels of w; a group may have channels of both x and skip.
        act: "silu" or "none".
        eps: added to the variance; > 0.
        residual: shape and dtype of `x`; not with `shuffled`.
        bias: [C] or [B, C], added to every pixel before the norm (a convolution's bias, the time embedding).
        skip: [B, D, H, W] in the dtype of `x`, the channels of h after those of x: a U-Net's skip, concatenated.
        shuffled: x is the output of a folded nearest-2x upsample, and phase_shuffle(x) takes its place.
        impl: "auto", "reference", "triton" (no float64) or "cpu" (float32 on a CPU, and a C++ compiler; its backward is
            the reference's).

    Returns:
        y and h in the dtype of `x`, channels_last, [B, C, H, W] or [B, C + D, H, W] (h is `x` itself where nothing was
        added or shuffled).
        Differentiable in every tensor, through both.

    Raises:
        ValueError: a shape, dtype, `act`, `groups` or `eps` does not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    shape = _checked_shape(x, shuffled)
    _check_added(x, shape[1], residual, bias, shuffled)
    _check_skip(x, shape, skip)
    _check_norm(w, b, shape[1] + (0 if skip is None else skip.shape[1]), groups, eps)
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; allowed: {', '.join(map(repr, ACTIVATIONS))}")
    y, h, _ = _forward(x, w, b, groups, eps, act == "silu", residual, bias, skip, shuffled, impl)
    return Normed(y, x if _plain(residual, bias, skip, shuffled=shuffled) else h)


def _checked_shape(x: Tensor, shuffled: bool) -> tuple[int, int, int, int]:
    """[B, C, H, W] of what x stands for."""
    expected = "[B, 4C, H/2 + 1, W/2 + 1]" if shuffled else "[B, C, H, W]"
    least, phases = (2, 4) if shuffled else (1, 1)
    if x.ndim != 4 or x.shape[1] % phases or min(x.shape[1:]) < least:
        raise ValueError(f"x is {tuple(x.shape)}; expected {expected}, H and W at least 1")
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}; allowed: floating point")
    batch, channels, height, width = x.shape
    if shuffled:
        return batch, channels // 4, 2 * (height - 1), 2 * (width - 1)
    return batch, channels, height, width


def _check_skip(x: Tensor, shape: tuple[int, int, int, int], skip: Tensor | None) -> None:
    if skip is None:
        return
    batch, _, height, width = shape
    fits = skip.ndim == 4 and (skip.shape[0], *skip.shape[2:]) == (batch, height, width)
    if not fits or not skip.shape[1] or skip.dtype != x.dtype:
        raise ValueError(
            f"skip is {tuple(skip.shape)} {skip.dtype}; "
            f"expected [{batch}, D, {height}, {width}] {x.dtype} as x, D at least 1"
        )


def _check_norm(w: Tensor, b: Tensor, channels: int, groups: int, eps: float) -> None:
    if w.shape != (channels,) or b.shape != (channels,):
        raise ValueError(f"w {tuple(w.shape)} and b {tuple(b.shape)}; expected [{channels}]")
    for name, tensor in (("w", w), ("b", b)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; allowed: floating point")
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}; it must divide the {channels} channels")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; it must be > 0")


def _check_added(
    x: Tensor, channels: int, residual: Tensor | None, bias: Tensor | None, shuffled: bool
) -> None:
    if residual is not None:
        if shuffled:
            raise ValueError("residual with shuffled; allowed: one of them")
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"residual is {tuple(residual.shape)} {residual.dtype}; "
                f"expected {tuple(x.shape)} {x.dtype} as x"
            )
    if bias is None:
        return
    wrong_batch = bias.ndim == 2 and bias.shape[0] != x.shape[0]
    if bias.ndim not in (1, 2) or bias.shape[-1] != channels or wrong_batch:
        raise ValueError(
            f"bias is {tuple(bias.shape)}; expected [{channels}] or [{x.shape[0]}, {channels}]"
        )
    if not bias.is_floating_point():
        raise ValueError(f"bias is {bias.dtype}; allowed: floating point")
