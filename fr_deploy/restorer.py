"""The callable that everything above works with: uint8 faces in, uint8 faces out."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fr_deploy.bundle import load_bundle
from fr_deploy.errors import UsageError
from fr_deploy.models.lafr import LafrModel

Faces = NDArray[np.uint8]


class Restorer:
    """Runs a LAFR model on batches of aligned faces, in float32 on the CPU."""

    def __init__(
        self,
        model: LafrModel,
        name: str,
        *,
        latent: Literal["mode", "sample"] = "mode",
        seed: int = 0,
        batch: int = 4,
    ) -> None:
        """Wrap a model.

        Args:
            model: in eval mode.
            name: shown to the user.
            latent: "mode" is deterministic; "sample" draws from the encoder's posterior, as the papers' code does.
            seed: of the draws; face i of a call gets its own generator (seed, i), whatever the batch.
            batch: faces per forward pass.
        """
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.name, self.size = name, model.preset.size
        self.latent, self.seed, self.batch = latent, seed, batch

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
        # NHWC bytes are channels_last already: permute costs nothing and convolutions take it as it is.
        image = (
            torch.from_numpy(np.ascontiguousarray(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1
        )
        noise = None
        if self.latent == "sample":
            side, channels = self.size // self.model.factor, self.model.preset.latent_channels
            noise = torch.stack(
                [self._noise(first + i, (channels, side, side)) for i in range(len(faces))]
            )
        out = ((self.model(image, noise) + 1) * 127.5).round_().clamp_(0, 255)
        return out.byte().permute(0, 2, 3, 1).contiguous().numpy()

    def _noise(self, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, index)) & 0x7FFF_FFFF_FFFF)
        return torch.randn(shape, generator=generator)


def load_restorer(
    name: str | Path = "lafr-mini", *, latent: Literal["mode", "sample"] = "mode", seed: int = 0
) -> Restorer:
    """Load a bundle (embedded name, folder or hub id) ready to restore; errors as `load_bundle`."""
    return Restorer(load_bundle(name), str(name), latent=latent, seed=seed)
