"""Ops that the models call; each folder is one op. Imports torch only."""

from fr_kernels.codebook.op import nearest_code, soft_lookup
from fr_kernels.phase_shuffle.op import phase_shuffle

__all__ = ["nearest_code", "phase_shuffle", "soft_lookup"]
