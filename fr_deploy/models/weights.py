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

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._prefix = tensors, ""
        self.read: list[str] = []
        """Names of all tensors read so far, through this view and those below it."""

    def __truediv__(self, name: object) -> "Weights":
        below = Weights(self._tensors)
        below._prefix, below.read = f"{self._prefix}{name}.", self.read
        return below

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in float64.

        Raises:
            ModelError: there is none of this name, or it holds a NaN or an infinity.
        """
        name = self._prefix + name
        if name not in self._tensors:
            raise ModelError(f"{name} is missing")
        self.read.append(name)
        tensor = self._tensors[name].to(torch.float64)
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"NaN or infinity in {name}")
        return tensor

    def affine(self, name: str) -> Affine:
        """Weight and bias of a layer that has both."""
        return Affine(self[f"{name}.weight"], self[f"{name}.bias"])

    def unbiased(self, name: str) -> Affine:
        """Weight of a layer that has no bias, and zeros."""
        weight = self[f"{name}.weight"]
        return Affine(weight, weight.new_zeros(len(weight)))
