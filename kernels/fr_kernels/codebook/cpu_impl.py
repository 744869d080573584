"""The nearest code on a CPU: `csrc/nearest_code.cpp`, in float32; distances are never in memory."""

import torch
from torch import Tensor

from fr_kernels import native

SOURCE = "nearest_code"


def nearest_code(features: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.nearest_code`."""
    features, codebook = features.contiguous(), codebook.contiguous()
    (n, dims), count = features.shape, len(codebook)
    index = torch.empty(n, dtype=torch.int32)
    scratch = torch.empty(native.call(SOURCE, "nearest_code_scratch", count, dims))
    given = (features, codebook, index, scratch, n, count, dims, native.threads())
    native.call(SOURCE, "nearest_code", *given)
    return codebook[index], index
