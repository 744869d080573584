"""Plain torch version of GEGLU, written for reading (Shazeer 2020, eq 6, behind its linear layer; diffusers' `GEGLU`).

x [..., 2D] holds value and gate side by side; Phi is the normal distribution, phi its density:

    y       = value gate Phi(gate)          Phi(g) = (1 + erf(g / sqrt 2)) / 2, not the tanh approximation
    dvalue  = dy gate Phi(gate)
    dgate   = dy value (Phi(gate) + gate phi(gate))

All arithmetic is in float32 (float64 for float64); results are contiguous.
"""

from math import pi, sqrt

import torch
from torch import Tensor


def geglu(x: Tensor) -> Tensor:
    """[..., 2D] -> [..., D]."""
    value, gate = _wide(x).chunk(2, -1)
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    return y.copy_(value * (gate * _normal(gate)))


def geglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient to x: [..., D] and [..., 2D] -> [..., 2D]."""
    (value, gate), dy = _wide(x).chunk(2, -1), _wide(grad)
    phi = (gate.square() * -0.5).exp() / sqrt(2 * pi)
    dvalue, dgate = dy * (gate * _normal(gate)), dy * value * (_normal(gate) + gate * phi)
    return x.new_empty(x.shape).copy_(torch.cat([dvalue, dgate], -1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normal(gate: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(gate * sqrt(0.5)))
