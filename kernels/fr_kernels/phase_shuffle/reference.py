"""Plain torch version of the shifted pixel shuffle, written for reading (ours).

Nearest 2x upsampling followed by a 3x3 convolution equals ONE 2x2 convolution with padding 1 and four times the
output channels, whose output y [B, 4C, H+1, W+1] holds the four phases (py, px) of each output pixel, C channels a
phase, phase-major:

    out[b, c, 2i + py, 2j + px] = y[b, (2 py + px) C + c, i + py, j + px]        out [B, C, 2H, 2W]
"""

import torch
from torch import Tensor

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))


def phase_shuffle(y: Tensor) -> Tensor:
    """[B, 4C, H+1, W+1] -> [B, C, 2H, 2W] in channels_last memory."""
    batch, channels, height, width = _output_shape(y)
    shape = (batch, channels, height, width)
    out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    for phase, (py, px) in enumerate(PHASES):
        part = y[:, phase * channels : (phase + 1) * channels]
        out[:, :, py::2, px::2] = part[:, :, py : py + height // 2, px : px + width // 2]
    return out


def phase_shuffle_backward(grad: Tensor) -> Tensor:
    """Gradient to y: [B, C, 2H, 2W] -> [B, 4C, H+1, W+1] in channels_last memory; the border is zero."""
    batch, channels, height, width = grad.shape
    shape = (batch, 4 * channels, height // 2 + 1, width // 2 + 1)
    out = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
    out = out.to(memory_format=torch.channels_last)
    for phase, (py, px) in enumerate(PHASES):
        part = out[:, phase * channels : (phase + 1) * channels]
        part[:, :, py : py + height // 2, px : px + width // 2] = grad[:, :, py::2, px::2]
    return out


def _output_shape(y: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = y.shape
    return batch, channels // 4, 2 * (height - 1), 2 * (width - 1)
