"""What codebook matching returns."""

from typing import NamedTuple

from torch import Tensor


class NearestCode(NamedTuple):
    """Result of `nearest_code`, and of `soft_lookup` in modes "embed" and "ste"."""

    codes: Tensor
    """[N, D], rows of the codebook, in its dtype."""
    indices: Tensor
    """int32 [N]."""


class IndexedCode(NamedTuple):
    """Result of `soft_lookup` in mode "index"."""

    value: Tensor
    """[N], the index as a float32 (float64 if an input is) that has a gradient."""
    indices: Tensor
    """int32 [N]."""
    codes: Tensor
    """[N, D], rows of the codebook, in its dtype."""
