"""Plain torch version of nearest 2x upsampling and a 3x3 convolution, folded into one 2x2 convolution of four phases.

y[b, p O + o, i, j] = sum over c, k, l of weight[p O + o, c, k, l] x[b, c, i + k - 1, j + l - 1], zero outside,
out = phase_shuffle(y) + bias[o]        (which pixel a phase p is: `phase_shuffle`)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_kernels.group_norm_silu.reference import channels_last
from fr_kernels.phase_shuffle.reference import phase_shuffle, phase_shuffle_backward


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, C, H, W] -> [B, O, 2H, 2W], channels_last."""
    return phase_shuffle(F.conv2d(x, weight, None if bias is None else bias.repeat(4), padding=1))


def upsample_conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias [O])."""
    ones = [1, 1]
    dy = phase_shuffle_backward(grad)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, ones, ones, ones, False, [0, 0], 1, [True, True, False]
    )
    return channels_last(dx), dweight.contiguous(), grad.sum((0, 2, 3))
