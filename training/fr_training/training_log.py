"""What a training run says of itself."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fr_training.data import Batch


class TrainingLog:
    """One JSON line a tick, TensorBoard when it is installed, and sample grids as PNG."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder, self.report = folder, report
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder))
        except ModuleNotFoundError:
            report('no TensorBoard curves: pip install "fr-deploy[train]"')
            self.board = None

    def scalars(self, images: int, values: dict[str, float]) -> None:
        """A line of `log.jsonl` and a point of every curve."""
        line = {"images": images, **{key: round(value, 5) for key, value in values.items()}}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(" ".join(f"{key}={value:g}" for key, value in line.items()))
        for key, value in values.items():
            if self.board is not None:
                self.board.add_scalar(key, value, images)

    def samples(self, images: int, batch: Batch, made: Tensor | None) -> None:
        """Rows of degraded, made, clean."""
        columns = (
            [batch.degraded, batch.clean] if made is None else [batch.degraded, made, batch.clean]
        )
        grid = torch.cat([torch.cat(list(c.detach().float()[:4]), 2) for c in columns], 1)
        pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        cv2.imwrite(
            str(self.folder / f"samples-{images:08d}.png"), np.ascontiguousarray(pixels[..., ::-1])
        )
