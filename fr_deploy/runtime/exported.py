"""From an exported directory to a loaded backend."""

from dataclasses import dataclass
from pathlib import Path

from fr_deploy.errors import UsageError
from fr_deploy.manifest import Manifest
from fr_deploy.manifest_check import check
from fr_deploy.runtime.backend import Backend
from fr_deploy.runtime.devices import parse_device
from fr_deploy.runtime.here import look
from fr_deploy.runtime.memory import keep_freed_memory
from fr_deploy.runtime.select import Request


@dataclass(frozen=True)
class Exported:
    """A directory that `fr-deploy export` wrote, and how far it is to be trusted."""

    folder: Path
    allow_unverified: bool = False
    """Run engines that were never run where they were built."""
    trusted: Path | None = None
    """File of the public key that must have signed it."""

    def load(self, request: Request) -> tuple[Backend, Manifest]:
        """Check the directory and load it onto the device asked for.

        Raises:
            ModelError, ResourceError: as `manifest_check.check`, `OnnxChain` and `TensorRtBackend`.
            UsageError: what is asked for is not what was exported.
        """
        _, index = parse_device(request.device)
        manifest = check(
            self.folder,
            here := look(index),
            trusted=self.trusted,
            allow_unverified=self.allow_unverified,
        )
        _refuse_other(self.folder, manifest, request)
        if manifest.format == "onnx":
            return _on_cpu(self.folder, manifest, request), manifest
        from fr_deploy.runtime.tensorrt_backend import TensorRtBackend

        return TensorRtBackend(self.folder, manifest, here.gpu or "", index), manifest


def title(folder: Path, manifest: Manifest) -> str:
    """What a directory holds, as shown to the user: model, LoRAs, form, and how it was verified."""
    loras = "".join(f" + {lora.name}:{lora.scale:g}" for lora in manifest.loras)
    psnr = manifest.parity.psnr
    found = "the same bytes" if psnr is None else f"{psnr:.1f} dB end to end"
    parts = "whole" if len(manifest.components) == 1 else f"{len(manifest.components)} components"
    verified = {
        "engine": "engines verified",
        "onnx": "verified",
        "onnx only": "only its ONNX verified",
    }
    return (
        f"{manifest.preset}{loras} from {folder} ({manifest.format} {manifest.precision}, {parts}, "
        f"{verified[manifest.verified]}: {found})"
    )


def _on_cpu(folder: Path, manifest: Manifest, request: Request) -> Backend:
    from fr_deploy.runtime.onnx_chain import OnnxChain

    keep_freed_memory()
    return OnnxChain(folder, manifest, threads=request.threads)


def _refuse_other(folder: Path, manifest: Manifest, request: Request) -> None:
    onnx = manifest.format == "onnx"
    wrong = {
        f"--device {request.device}": request.device.startswith("cuda" if onnx else "cpu"),
        "--require-gpu": onnx and request.require_gpu,
        f"--dtype {request.dtype}": request.dtype not in ("auto", manifest.precision),
        f"--backend {request.backend}": request.backend != "auto",
        f"--attention {request.attention}": request.attention != "auto",
    }
    asked = [option for option, refused in wrong.items() if refused]
    if asked:
        where = "onnxruntime on the CPU" if onnx else f"{manifest.format} on a GPU"
        raise UsageError(
            f"{folder} runs in {where} in {manifest.precision}; leave out {', '.join(asked)}, or export another: "
            "fr-deploy export BUNDLE -o DIR --format FORMAT --precision PRECISION"
        )
