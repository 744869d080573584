"""One call for attention, and who computes it."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fr_deploy.errors import ResourceError, UsageError

Kind = Literal["sdpa", "flash", "efficient", "cudnn", "math", "xformers", "products"]
KINDS: tuple[Kind, ...] = ("sdpa", "flash", "efficient", "cudnn", "math", "xformers", "products")
_SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
WIDEST = 256
"""Channels a head up to which flash kernels exist."""


def attend(q: Tensor, k: Tensor, v: Tensor, kind: Kind, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for each head.

    "sdpa" leaves the choice to torch; "flash", "efficient", "cudnn" and "math" are its kernels by name. "products" is
    product, softmax (inside it float32) and product, one image at a time: what should pay for one head of 512 channels
    on a GPU, where flash kernels stop at 256 (predicted 80 to 170 us against 340, kernels/README.md; not measured).

    Args:
        q: [B, heads, N, D].
        k, v: [B, heads, M, D].
        kind: who computes it.
        scale: default D^-0.5.

    Returns:
        [B, heads, N, D].
    """
    if kind == "products":
        images = zip(q.split(1), k.split(1), v.split(1), strict=True)
        return torch.cat([_products(*image, scale) for image in images])
    if kind == "xformers":
        # Beside each other, not in front: [B, N, heads, D].
        turned = (t.transpose(1, 2) for t in (q, k, v))
        return _xformers().memory_efficient_attention(*turned, scale=scale).transpose(1, 2)
    if kind == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    with sdpa_kernel(_SDPA[kind]):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def check_kind(kind: str) -> Kind:
    """A kind by name.

    Raises:
        UsageError: there is no such kind.
        ResourceError: xformers is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"attention is {kind!r}; allowed: {', '.join(KINDS)}")
    if kind == "xformers" and find_spec("xformers") is None:
        raise ResourceError('attention xformers: it is not installed: pip install "fr-deploy[gpu]"')
    return kind  # pyright: ignore[reportReturnType]


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    # Scaled before the product: scores of 512 channels leave float16's range.
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.mT
    return scores.softmax(-1) @ v


def _xformers() -> Any:
    import xformers.ops  # pyright: ignore[reportMissingImports]

    return xformers.ops
