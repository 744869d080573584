"""Weights by name, as a bundle stores them, for the folds to read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fr_deploy.errors import ModelError
from fr_deploy.models.fold import Affine


class Weights:
    """A view of named tensors below a prefix; what it returns is float64, in which folds are computed.

    `weights / "encoder"` is the view below "encoder."; `weights["conv_in.weight"]` a tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __truediv__(self, name: object) -> "Weights":
        return Weights(self._tensors, f"{self._prefix}{name}.")

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in float64.

        Raises:
            ModelError: there is none of this name.
        """
        if name not in self:
            raise ModelError(f"the weights have no {self._prefix}{name}")
        return self._tensors[self._prefix + name].to(torch.float64)

    def affine(self, name: str) -> Affine:
        """Weight and bias of a layer that has both."""
        return Affine(self[f"{name}.weight"], self[f"{name}.bias"])

    def unbiased(self, name: str) -> Affine:
        """Weight of a layer that has no bias, and zeros."""
        weight = self[f"{name}.weight"]
        return Affine(weight, weight.new_zeros(len(weight)))
