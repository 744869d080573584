"""The one-step formula: a single UNet call turns the latent into the clean latent."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OneStep:
    """alpha = sqrt(abar_t) and sigma = sqrt(1 - abar_t) of SD 2.1's scaled-linear schedule."""

    timestep: int
    alpha: float
    sigma: float

    def x0(self, z: Tensor, eps: Tensor) -> Tensor:
        """z0 = (z - sigma eps) / alpha (OSEDiff; FLIPNET eq 3; HDRFace eq 11).

        Computed in float32 (float64 for float64) and returned so: at t = 999 an error of eps is amplified 14.6 times.
        """
        wide = torch.promote_types(z.dtype, torch.float32)
        return (z.to(wide) - self.sigma * eps.to(wide)) / self.alpha


def one_step(timestep: int) -> OneStep:
    """The constants for an index 0..999 into the 1000-step schedule (betas 0.00085 to 0.012, scaled linear).

    Raises:
        ValueError: the index is out of range.
    """
    if not 0 <= timestep < 1000:
        raise ValueError(f"timestep is {timestep}; allowed: 0 to 999")
    betas = torch.linspace(
        0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device="cpu"
    ).square()
    abar = float((1 - betas).cumprod(0)[timestep])
    return OneStep(timestep, abar**0.5, (1 - abar) ** 0.5)
