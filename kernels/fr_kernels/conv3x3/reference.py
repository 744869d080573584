"""Plain torch version of the 3x3 convolution with stride 1.

y[b, o, i, j] = sum over c, k, l of weight[o, c, k, l] x[b, c, i + k - padding, j + l - padding], zero outside,
                + bias[o] + residual[b, o, i, j].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.group_norm_silu.reference import channels_last


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, padding: int
) -> Tensor:
    """[B, C, H, W] -> [B, O, H + 2 padding - 2, W + 2 padding - 2], channels_last."""
    y = F.conv2d(x, weight, bias, padding=padding)
    return channels_last(y if residual is None else y + residual)


def conv3x3_backward(
    grad: Tensor, x: Tensor, weight: Tensor, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias [O])."""
    ones, sides = [1, 1], [padding, padding]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], ones, sides, ones, False, [0, 0], 1, [True, True, True]
    )
    return channels_last(dx), dweight.contiguous(), dbias
