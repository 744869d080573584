"""Codebook matching as operators: schema, fake, autograd, public functions."""

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fr_kernels.codebook import reference
from fr_kernels.codebook.results import IndexedCode, NearestCode
from fr_kernels.dispatch import Impl, declare_launches, declare_no_products, resolve

MODES = ("embed", "index", "ste")


def _triton(op: str, impl: str, features: Tensor, codebook: Tensor) -> bool:
    return _chosen(op, impl, features, codebook, (Impl.TRITON,)) is Impl.TRITON


def _chosen(
    op: str, impl: str, features: Tensor, codebook: Tensor, offered: tuple[Impl, ...]
) -> Impl:
    unfit = ""
    if torch.float64 in (features.dtype, codebook.dtype):
        unfit = "its kernels do not compute in float64"
    elif codebook.shape[1] > 256:
        unfit = f"D is {codebook.shape[1]}, and its kernels hold at most 256 dimensions"
    both = (features.dtype, codebook.dtype)
    narrow = both != (torch.float32, torch.float32)
    on_cpu = f"the tensors are {both[0]} and {both[1]}, and it computes in float32 alone"
    return resolve(op, impl, (features, codebook), offered, unfit, on_cpu if narrow else "")


def _plain(tensor: Tensor) -> torch.autocast:
    """Autocast off: it would compute the reference's distances in 16 bits."""
    return torch.autocast(tensor.device.type, enabled=False)


@torch.library.custom_op("fr_kernels::nearest_code", mutates_args=())
def _nearest(
    features: Tensor, codebook: Tensor, straight_through: bool, impl: str
) -> tuple[Tensor, Tensor]:
    chosen = _chosen("nearest_code", impl, features, codebook, (Impl.TRITON, Impl.CPU))
    if chosen is Impl.TRITON:
        from fr_kernels.codebook import triton_impl

        return triton_impl.nearest_code(features, codebook)
    if chosen is Impl.CPU:
        from fr_kernels.codebook import cpu_impl

        return cpu_impl.nearest_code(features, codebook)
    with _plain(features):
        return reference.nearest_code(features, codebook)


@torch.library.custom_op("fr_kernels::nearest_code_backward", mutates_args=())
def _nearest_backward(grad: Tensor, index: Tensor, codebook: Tensor, impl: str) -> Tensor:
    # The CPU's form is a forward pass alone.
    impl = Impl.REFERENCE if impl == Impl.CPU else impl
    if _triton("nearest_code", impl, grad, codebook):
        from fr_kernels.codebook import triton_backward

        return triton_backward.nearest_code_backward(grad, index, codebook)
    return reference.nearest_code_backward(grad, index, codebook)


@torch.library.custom_op("fr_kernels::soft_lookup", mutates_args=())
def _soft(
    features: Tensor, codebook: Tensor, beta: float, indexed: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if _triton("soft_lookup", impl, features, codebook):
        from fr_kernels.codebook import triton_impl

        return triton_impl.soft_lookup(features, codebook, beta, indexed)
    with _plain(features):
        return reference.soft_lookup(features, codebook, beta, indexed)


@torch.library.custom_op("fr_kernels::soft_lookup_backward", mutates_args=())
def _soft_backward(
    grad: Tensor,
    features: Tensor,
    codebook: Tensor,
    index: Tensor,
    stats: Tensor,
    beta: float,
    indexed: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    given = (grad, features, codebook, index, stats, beta, indexed)
    if _triton("soft_lookup", impl, features, codebook):
        from fr_kernels.codebook import triton_backward

        return triton_backward.soft_lookup_backward(*given)
    with _plain(features):
        return reference.soft_lookup_backward(*given)


@_nearest.register_fake
def _(
    features: Tensor, codebook: Tensor, straight_through: bool, impl: str
) -> tuple[Tensor, Tensor]:
    n = features.shape[0]
    return codebook.new_empty(n, codebook.shape[1]), features.new_empty(n, dtype=torch.int32)


@_nearest_backward.register_fake
def _(grad: Tensor, index: Tensor, codebook: Tensor, impl: str) -> Tensor:
    return codebook.new_empty(codebook.shape)


@_soft.register_fake
def _(
    features: Tensor, codebook: Tensor, beta: float, indexed: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = features.shape[0]
    wide = torch.promote_types(torch.promote_types(features.dtype, codebook.dtype), torch.float32)
    return (
        codebook.new_empty(n, codebook.shape[1]),
        features.new_empty(n, dtype=torch.int32),
        features.new_empty(n if indexed else 0, dtype=wide),
        features.new_empty(3 if indexed else 2, n, dtype=wide),
    )


@_soft_backward.register_fake
def _(
    grad: Tensor,
    features: Tensor,
    codebook: Tensor,
    index: Tensor,
    stats: Tensor,
    beta: float,
    indexed: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return features.new_empty(features.shape), codebook.new_empty(codebook.shape)


def _nearest_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, codebook, ctx.straight_through, ctx.impl = inputs
    ctx.dtype = features.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(codebook, output[1])


def _nearest_gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    to_features = to_codebook = None
    if grad is not None:
        codebook, index = ctx.saved_tensors
        if ctx.straight_through and ctx.needs_input_grad[0]:
            to_features = grad.to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_codebook = _nearest_backward(grad, index, codebook, ctx.impl)
    return to_features, to_codebook, None, None


def _soft_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, codebook, ctx.beta, ctx.indexed, ctx.impl = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(features, codebook, output[1], output[3])


def _soft_gradient(
    ctx: Any, to_codes: Tensor | None, _: None, to_value: Tensor | None, __: None
) -> tuple[Tensor | None, ...]:
    features, codebook, index, stats = ctx.saved_tensors
    through = to_value if ctx.indexed else to_codes
    to_features = to_codebook = None
    if through is not None:
        to_features, to_codebook = _soft_backward(
            through, features, codebook, index, stats, ctx.beta, ctx.indexed, ctx.impl
        )
    if ctx.indexed and to_codes is not None and ctx.needs_input_grad[1]:
        chosen = _nearest_backward(to_codes, index, codebook, ctx.impl)
        to_codebook = chosen if to_codebook is None else to_codebook + chosen
    return to_features, to_codebook, None, None, None


_nearest.register_autograd(_nearest_gradient, setup_context=_nearest_context)
_soft.register_autograd(_soft_gradient, setup_context=_soft_context)
declare_launches("nearest_code", lambda *_: 2)
declare_launches("nearest_code_backward", lambda *_: 2)
declare_launches("soft_lookup", lambda *_: 2)
declare_launches("soft_lookup_backward", lambda *_: 4)
declare_no_products(torch.ops.fr_kernels.nearest_code_backward)


@register_flop_formula([torch.ops.fr_kernels.nearest_code, torch.ops.fr_kernels.soft_lookup])
def _forward_flops(
    features: tuple[int, int], codebook: tuple[int, int], *_: object, **__: object
) -> int:
    return 2 * features[0] * codebook[0] * codebook[1]


@register_flop_formula(torch.ops.fr_kernels.soft_lookup_backward)
def _backward_flops(
    grad: tuple[int, ...],
    features: tuple[int, int],
    codebook: tuple[int, int],
    *_: object,
    **__: object,
) -> int:
    """The products of the formula: f.c, p c, p f, and in mode "embed" g.c and w g; nothing counted twice."""
    products = 5 if len(grad) == 2 else 3
    return 2 * products * features[0] * codebook[0] * codebook[1]


def nearest_code(features: Tensor, codebook: Tensor, *, impl: str = "auto") -> NearestCode:
    """Nearest code of each feature by Euclidean distance (LAFR, section 3.2), ties to the lowest index.

    The distances are never in memory (reference: 4096 features of them at a time). Differentiable in the codebook: a
    code gets the sum of the gradients of the features that chose it. Features get no gradient.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64, any strides.
        codebook: [K, D], as `features`; the dtypes may differ. Products of two 16-bit inputs of one dtype are
            exact and summed in float32; all else is computed in float32 (float64 if an input is).
        impl: "auto", "reference", "triton" (D at most 256, no float64) or "cpu" (float32 on a CPU, and a C++ compiler).

    Returns:
        The codes and their indices. A feature that is not finite gets some code; a code that is NaN is never chosen
        while another can be.

    Raises:
        ValueError: the shapes or dtypes do not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    _check(features, codebook)
    return NearestCode(*_nearest(features, codebook, False, impl))


@overload
def soft_lookup(
    features: Tensor, codebook: Tensor, beta: float, mode: Literal["index"], *, impl: str = "auto"
) -> IndexedCode: ...
@overload
def soft_lookup(
    features: Tensor,
    codebook: Tensor,
    beta: float,
    mode: Literal["embed", "ste"] = "embed",
    *,
    impl: str = "auto",
) -> NearestCode: ...
def soft_lookup(
    features: Tensor, codebook: Tensor, beta: float, mode: str = "embed", *, impl: str = "auto"
) -> NearestCode | IndexedCode:
    """`nearest_code` that also has a gradient to the features; the forward is the same in every mode.

    Kept for the backward beside the inputs: at most 16 bytes a feature; weights are computed again, tile by tile.

    Mode "embed" (ours, for training): as if codes = c* + (soft - stopgrad(soft)), soft = sum_k w_k c_k,
        w = softmax(-beta distance). Features and all codes get the gradient of the soft code. It goes to the code
        vector, not to its number, because an index has no order.
    Mode "index" (the paper's differentiable argmin, LAFR A.2.2, its forward corrected from argmax to argmin; for
        comparison with the paper): `value` is the index as a float with the gradient of the soft index
        s = sum_k w_k k; d value / df = 2 beta Cov_w(k, c), which depends on how the codes are numbered. `codes` pass
        their gradient to the chosen codes alone.
    Mode "ste" (the usual straight-through estimator of vector quantisation, f + stopgrad(c* - f)): the gradient of
        the codes goes to the features unchanged and, beyond that formula, to the chosen codes; `beta` is not used.

    Args:
        features: [N, D], float16, bfloat16, float32 or float64, any strides.
        codebook: [K, D], as `features`; the dtypes may differ, see `nearest_code`.
        beta: inverse temperature, > 0, in 1 / squared distance.
        mode: "embed", "index" or "ste".
        impl: "auto", "reference" or "triton" (D at most 256, no float64).

    Raises:
        ValueError: the shapes, dtypes, beta or mode do not fit.
        KernelUnavailableError: `impl` cannot run here.
    """
    _check(features, codebook)
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be > 0")
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(map(repr, MODES))}")
    if mode == "ste":
        return NearestCode(*_nearest(features, codebook, True, impl))
    codes, index, value, _ = _soft(features, codebook, beta, mode == "index", impl)
    return IndexedCode(value, index, codes) if mode == "index" else NearestCode(codes, index)


def _check(features: Tensor, codebook: Tensor) -> None:
    if features.ndim != 2 or codebook.ndim != 2 or features.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and codebook {tuple(codebook.shape)}; "
            "expected [N, D] and [K, D] with the same D"
        )
    if 0 in codebook.shape:
        raise ValueError(f"codebook is {tuple(codebook.shape)}; it needs a code and a dimension")
    for name, tensor in (("features", features), ("codebook", codebook)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; allowed: floating point")
