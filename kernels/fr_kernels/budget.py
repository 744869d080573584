"""The numeric contract of every kernel: its error against float64 is held to that of eager code in the same dtype."""

from typing import NamedTuple

import torch
from torch import Tensor


class Budget(NamedTuple):
    """Largest absolute errors against float64."""

    error: float
    """Of the kernel."""
    allowed: float
    """2 x eager's error + one rounding band (eps of the dtype x the largest value)."""

    @property
    def kept(self) -> bool:
        """Whether the kernel is within its budget; NaN and infinity never are."""
        return self.error <= self.allowed


def budget(got: Tensor, eager: Tensor, exact: Tensor) -> Budget:
    """Compare a kernel's output and eager's, of one dtype, with the float64 result.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if got.shape != exact.shape or eager.shape != exact.shape:
        shapes = [tuple(t.shape) for t in (got, eager, exact)]
        raise ValueError(f"kernel, eager and exact are {shapes}; expected one shape")
    if got.dtype != eager.dtype or exact.dtype != torch.float64:
        dtypes = [got.dtype, eager.dtype, exact.dtype]
        raise ValueError(f"kernel, eager and exact are {dtypes}; expected one dtype, and float64")
    if not got.numel():
        return Budget(0.0, 0.0)
    error, peer = (float((t.double() - exact).abs().max()) for t in (got, eager))
    band = torch.finfo(got.dtype).eps * float(exact.abs().max())
    return Budget(error, 2 * peer + band)
