"""The callable that everything above works with: uint8 faces in, uint8 faces out."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr_deploy.bundle import load_bundle, load_graph
from fr_deploy.errors import UsageError
from fr_deploy.models.restorer import RestorationGraph

if TYPE_CHECKING:
    from fr_deploy.models.lafr import LafrModel

Faces = NDArray[np.uint8]


class Restorer:
    """Runs a LAFR model on batches of aligned faces, in float32 on the CPU.

    With the encoder's mode it runs the folded graph. Sampling the latent needs what folding leaves out (half of the
    encoder's last layer), so it runs the unfolded model.
    """

    def __init__(
        self,
        model: "LafrModel | RestorationGraph",
        name: str,
        *,
        latent: Literal["mode", "sample"] = "mode",
        seed: int = 0,
        batch: int = 4,
    ) -> None:
        """Wrap a model.

        Args:
            model: in eval mode; a graph has no sampled latent.
            name: shown to the user.
            latent: "mode" is deterministic; "sample" draws from the encoder's posterior, as the papers' code does.
            seed: of the draws; face i of a call gets its own generator (seed, i), whatever the batch.
            batch: faces per forward pass.

        Raises:
            UsageError: a sampled latent asked of a graph.
        """
        self.name, self.size = name, model.preset.size
        self.seed, self.batch = seed, batch
        if isinstance(model, RestorationGraph):
            if latent == "sample":
                raise UsageError(
                    "a folded graph takes the latent's mode; give a LafrModel to sample"
                )
            graph = model
        else:
            graph = RestorationGraph.of(model) if latent == "mode" else model
        self._runs = graph.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._runs.parameters()).device

    def __call__(self, faces: Faces) -> Faces:
        """Restore aligned faces.

        Args:
            faces: uint8 [N, S, S, 3] RGB with S = `size`; N may be 0.

        Returns:
            The same shape and dtype.

        Raises:
            UsageError: another shape or dtype.
        """
        expected = (self.size, self.size, 3)
        if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1:] != expected:
            raise UsageError(
                f"faces are {faces.dtype} {faces.shape}; expected uint8 [N, {self.size}, {self.size}, 3]"
            )
        parts = [self._run(faces[i : i + self.batch], i) for i in range(0, len(faces), self.batch)]
        return np.concatenate(parts) if parts else faces.copy()

    @torch.inference_mode()
    def _run(self, faces: Faces, first: int) -> Faces:
        pixels = torch.from_numpy(np.ascontiguousarray(faces))
        if isinstance(self._runs, RestorationGraph):
            return self._runs(pixels).numpy()
        return self._sampled(self._runs, pixels, first).numpy()

    def _sampled(self, model: "LafrModel", pixels: Tensor, first: int) -> Tensor:
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        side, channels = self.size // model.factor, model.preset.latent_channels
        noise = [self._noise(first + i, (channels, side, side)) for i in range(len(pixels))]
        out = ((model(image, torch.stack(noise)) + 1) * 127.5).round_().clamp_(0, 255)
        return out.byte().permute(0, 2, 3, 1).contiguous()

    def _noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, index)) & 0x7FFF_FFFF_FFFF)
        return torch.randn(shape, generator=generator)


def load_restorer(
    name: str | Path = "lafr-mini", *, latent: Literal["mode", "sample"] = "mode", seed: int = 0
) -> Restorer:
    """Load a bundle (embedded name, folder or hub id) ready to restore; errors as `load_graph`."""
    model = load_graph(name) if latent == "mode" else load_bundle(name)
    return Restorer(model, str(name), latent=latent, seed=seed)
