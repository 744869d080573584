"""Plain torch version of settling a picture, written for reading (ours).

x [B, C, H, W], with `shuffled` [B, 4C, H/2 + 1, W/2 + 1]; residual [B, C, H, W]; bias [C]:

    y = (phase_shuffle(x) if shuffled else x) + residual + bias       rounded to the dtype of x

With `pad` one row of zeros below and one column of zeros to the right: y [B, C, H + 1, W + 1] is
F.pad(y, (0, 1, 0, 1)), what Stable Diffusion's encoder does before a convolution with stride 2. Backward, from dy
without that row and column:

    dx = dy, with `shuffled` scattered back;  dresidual = dy;  dbias = sum(dy) over images and pixels

Sums are in float32 (float64 for float64); y is in channels_last memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.phase_shuffle.reference import phase_shuffle


def settle(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: bool, shuffled: bool
) -> Tensor:
    """[B, C, H, W], or one larger with `pad`."""
    total = (phase_shuffle(x) if shuffled else x).to(_wide(x.dtype))
    if residual is not None:
        total = total + residual.to(total.dtype)
    if bias is not None:
        total = total + bias.to(total.dtype)[:, None, None]
    total = F.pad(total, (0, 1, 0, 1)) if pad else total
    y = torch.empty_like(total, dtype=x.dtype, memory_format=torch.channels_last)
    return y.copy_(total)


def settle_backward(grad: Tensor, bias: Tensor, pad: bool) -> Tensor:
    """dbias, of the gradient to y."""
    return _wide_sum(cropped(grad) if pad else grad).to(bias.dtype)


def cropped(grad: Tensor) -> Tensor:
    """A view without the last row and the last column."""
    return grad[:, :, :-1, :-1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _wide_sum(grad: Tensor) -> Tensor:
    return grad.to(_wide(grad.dtype)).sum((0, 2, 3))
