"""The callable that everything above works with: uint8 faces in, uint8 faces out."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr_deploy.bundle import Bundle, load_bundle
from fr_deploy.errors import UsageError
from fr_deploy.runtime.backend import Backend
from fr_deploy.runtime.exported import Exported, title
from fr_deploy.runtime.runner import Runner
from fr_deploy.runtime.select import Request, load_backend

if TYPE_CHECKING:
    from fr_deploy.models.lafr import LafrModel

Faces = NDArray[np.uint8]


class Restorer:
    """Restores aligned faces on a backend, in batches."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        *,
        batch: int | None = None,
        fixed_bucket: int | None = None,
    ) -> None:
        """Wrap a backend.

        Args:
            backend: runs one batch.
            name: of the model, shown to the user.
            batch: faces a batch at most; default 4 on a CPU, whose caches larger ones leave, 32 on a GPU.
            fixed_bucket: as `Runner`.

        Raises:
            UsageError: as `Runner`.
        """
        self.name, self.backend, self.size = name, backend, backend.size
        default = 4 if backend.device.startswith("cpu") else 32
        self.runner = Runner(backend, batch=batch or default, fixed=fixed_bucket)

    @property
    def device(self) -> str:
        """Where and how it computes, as shown to the user."""
        return f"{self.backend.device}, {self.backend.dtype}, {self.backend.name}"

    def __call__(self, faces: Faces) -> Faces:
        """Restore aligned faces.

        Args:
            faces: uint8 [N, S, S, 3] RGB with S = `size`; N may be 0.

        Returns:
            The same shape and dtype.

        Raises:
            UsageError: another shape or dtype.
            ResourceError: not even one face fits into memory.
        """
        return self.runner(_checked(faces, self.size)).numpy()


class SampledRestorer:
    """Restores with latents drawn from the encoder's posterior, as the papers' code does: float32, on the CPU.

    It runs the unfolded model: folding leaves out half of the encoder's last layer, which sampling needs.
    """

    def __init__(self, model: "LafrModel", name: str, *, seed: int = 0, batch: int = 4) -> None:
        """Wrap a model in eval mode.

        Args:
            model: it computes where its weights are.
            name: shown to the user.
            seed: face i of a call gets its own generator (seed, i), whatever the batch.
            batch: faces a forward pass.
        """
        self.name, self.size, self.device = name, model.preset.size, "cpu, fp32, sampled latent"
        self.seed, self.batch = seed, batch
        self._model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def __call__(self, faces: Faces) -> Faces:
        """As `Restorer`."""
        pixels = _checked(faces, self.size)
        parts = [
            self._run(pixels[i : i + self.batch], i) for i in range(0, len(pixels), self.batch)
        ]
        return torch.cat(parts).numpy() if parts else faces.copy()

    def _run(self, pixels: Tensor, first: int) -> Tensor:
        model = self._model
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        side, channels = self.size // model.factor, model.preset.latent_channels
        noise = [self._noise(first + i, (channels, side, side)) for i in range(len(pixels))]
        out = ((model(image, torch.stack(noise)) + 1) * 127.5).round_().clamp_(0, 255)
        return out.byte().permute(0, 2, 3, 1).contiguous()

    def _noise(self, index: int, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, index)) & 0x7FFF_FFFF_FFFF)
        return torch.randn(shape, generator=generator)


def _checked(faces: Faces, size: int) -> Tensor:
    if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1:] != (size, size, 3):
        raise UsageError(
            f"faces are {faces.dtype} {faces.shape}; expected uint8 [N, {size}, {size}, 3]"
        )
    return torch.from_numpy(np.ascontiguousarray(faces))


def load_restorer(
    source: str | Path | Bundle = "lafr-mini",
    *,
    latent: Literal["mode", "sample"] = "mode",
    seed: int = 0,
    request: Request | None = None,
    batch: int | None = None,
    fixed_bucket: int | None = None,
) -> Restorer | SampledRestorer:
    """Load a bundle ready to restore.

    Args:
        source: embedded name, bundle folder or hub id; or what `read_bundle` returned, with LoRAs in it.
        latent: "mode" is deterministic and runs the folded graph; "sample" draws from `seed`, on the CPU.
        seed: of the draws.
        request: device, number format and backend; default: the fastest that this machine has.
        batch, fixed_bucket: as `Restorer`.

    Raises:
        ModelError, ResourceError: as `load_graph`.
        UsageError, ResourceError: as `load_backend`; a sampled latent on anything but the CPU in float32.
    """
    request = request or Request()
    name = source.name if isinstance(source, Bundle) else str(source)
    if latent == "mode":
        backend = load_backend(source, request)
        return Restorer(backend, name, batch=batch, fixed_bucket=fixed_bucket)
    request.refuse_for("a sampled latent", fixed_bucket)
    return SampledRestorer(load_bundle(source), name, seed=seed, batch=batch or 4)


def load_exported(
    exported: Exported,
    *,
    request: Request | None = None,
    batch: int | None = None,
    fixed_bucket: int | None = None,
) -> Restorer:
    """Load a directory that `fr-deploy export` wrote, ready to restore; refused unless it is what its manifest says.

    Args:
        exported: the directory, and how far it is to be trusted.
        request: device and threads; what it runs in was decided when it was exported.
        batch, fixed_bucket: as `Restorer`.

    Raises:
        ModelError, ResourceError, UsageError: as `Exported.load`.
        UsageError: as `Restorer`.
    """
    backend, manifest = exported.load(request or Request())
    name = title(exported.folder, manifest)
    return Restorer(backend, name, batch=batch, fixed_bucket=fixed_bucket)
