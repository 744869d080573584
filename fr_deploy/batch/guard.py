"""The identity guard: a face that became another person is blended back towards the one it was."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fr_deploy.batch.stage import Stage
from fr_deploy.batch.work import Faces, Restored

if TYPE_CHECKING:
    from fr_deploy.faces import FaceEmbedder

Crops = NDArray[np.uint8]
Measure = Callable[[Sequence[int], Crops], Sequence[float]]
"""How many degrees some faces of a batch, named by their places in it, moved to become [K, 512, 512, 3]."""

QUARTERS = (3, 2, 1)
"""Shares of the restored face that are tried, the largest first."""


def guarded(before: Crops, restored: Restored, limit: float, measure: Measure) -> Restored:
    """Blend back every face that moved by more than `limit`.

    It gets the largest share of the restored face, of 3/4, 1/2 and 1/4, that moves it by no more; else none of it.

    Args:
        before: the batch, uint8 [N, 512, 512, 3].
        restored: what a device made of it, with its angles.
        limit: degrees.
        measure: the angle of a blend.

    Returns:
        The batch with `kept` and `blends`; `restored` is not changed.
    """
    assert restored.angles is not None
    kept, blends = list(restored.angles), [1.0] * len(before)
    # Not `angle > limit`: an angle that is no number is beyond it, too.
    left = [i for i, angle in enumerate(kept) if not angle <= limit]
    crops = restored.crops.copy() if left else restored.crops
    for quarters in QUARTERS:
        if not left:
            break
        mixed = _mixed(restored.crops[left], before[left], quarters)
        angles = measure(left, mixed)
        for i, face, angle in zip(left, mixed, angles, strict=True):
            if angle <= limit:
                crops[i], kept[i], blends[i] = face, float(angle), quarters / 4
        left = [i for i, angle in zip(left, angles, strict=True) if not angle <= limit]
    for i in left:
        crops[i], kept[i], blends[i] = before[i], 0.0, 0.0
    return Restored(crops, restored.angles, kept, blends, restored.ms)


def _mixed(restored: Crops, before: Crops, quarters: int) -> Crops:
    """So many quarters of the one and the rest of the other, rounded; 16 bits hold four times 255."""
    total = restored.astype(np.uint16) * quarters + before.astype(np.uint16) * (4 - quarters)
    return ((total + 2) // 4).astype(np.uint8)


@dataclass
class GuardedDevice:
    """A device whose answers are measured and, with a limit, guarded.

    Args:
        device: restores.
        limit: degrees of `deg_dlib`; None: measure alone.
        embed_on: torch device of the embedder; "auto": a GPU if there is one.
        one_by_one: embed each face alone, so that no decision depends on what else was in a batch.
    """

    device: Stage
    limit: float | None = None
    embed_on: str = "auto"
    one_by_one: bool = False
    _embedder: "FaceEmbedder | None" = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Load the device's model, and the embedder beside it.

        Raises:
            FrDeployError: as the device's own.
        """
        self.device.setup()
        import torch

        from fr_deploy.faces import FaceEmbedder

        where = self.embed_on
        if where == "auto":
            where = "cuda" if torch.cuda.is_available() else "cpu"
        self._embedder = FaceEmbedder(where)

    def __call__(self, task: Faces) -> Restored:
        """Restore a batch, uint8 [N, 512, 512, 3]; its `ms` is the device's own, without what is measured here.

        Raises:
            FrDeployError: as the device.
        """
        from fr_deploy.faces import deg_dlib

        restored: Restored = self.device(task)
        before = self._embed(task.crops)

        def measure(places: Sequence[int], crops: Crops) -> list[float]:
            return deg_dlib(before[list(places)], self._embed(crops)).tolist()

        restored.angles = measure(range(len(before)), restored.crops)
        if self.limit is None:
            return restored
        return guarded(task.crops, restored, self.limit, measure)

    def _embed(self, crops: Crops) -> NDArray[np.float32]:
        assert self._embedder is not None
        if not self.one_by_one:
            return self._embedder.embed(crops)
        return np.concatenate([self._embedder.embed(crop[None]) for crop in crops])
