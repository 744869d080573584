"""Ops that the models call; each folder is one op. Imports torch only."""

from fr_kernels.codebook.op import nearest_code, soft_lookup

__all__ = ["nearest_code", "soft_lookup"]
