"""Two ways of computing beside each other: the pictures both are given, and how far their results are apart."""

from dataclasses import dataclass
from math import inf

import cv2
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How far two sets of uint8 pictures are apart."""

    faces: int
    differing: float
    """Share of the values that differ."""
    largest: int
    """Largest difference, of 255."""
    psnr: float
    """In dB; infinite when no value differs."""

    def __str__(self) -> str:
        return (
            f"{self.faces} faces, {self.differing:.4%} of the values differ, by {self.largest} of 255 at most, "
            f"{self.psnr:.1f} dB"
        )


def agree(ours: Tensor, wanted: Tensor) -> Agreement:
    """Compare results of the same faces.

    Args:
        ours, wanted: uint8 [N, S, S, 3], N at least 1.

    Raises:
        ValueError: their shapes differ.
    """
    if ours.shape != wanted.shape:
        raise ValueError(f"{tuple(ours.shape)} and {tuple(wanted.shape)}; expected one shape")
    difference = (ours.int() - wanted.int()).abs()
    error = float(difference.double().square().mean())
    psnr = float(10 * np.log10(255**2 / error)) if error else inf
    differing = float((difference > 0).double().mean())
    return Agreement(len(ours), differing, int(difference.max()), psnr)


def random_pictures(size: int, count: int = 1) -> Tensor:
    """Pictures with coarse and fine detail, always the same: uint8 [count, size, size, 3]."""
    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)
    smooth = [cv2.resize(c, (size, size), interpolation=cv2.INTER_CUBIC) for c in coarse]
    grain = random.normal(0, 8, (count, size, size, 3))
    pictures = np.array(smooth).reshape(grain.shape) + grain
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8))
