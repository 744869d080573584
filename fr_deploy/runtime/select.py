"""From what the user asked for to a loaded backend."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fr_deploy.bundle import Bundle, load_graph
from fr_deploy.errors import UsageError
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.backend import Backend
from fr_deploy.runtime.devices import Place, choose_place
from fr_deploy.runtime.memory import keep_freed_memory
from fr_deploy.runtime.quality import refuse_if_worse_than_saving
from fr_deploy.runtime.remembered import fastest
from fr_deploy.runtime.torch_backend import MODES, Mode, TorchBackend

BackendName = Literal["auto", "torch-eager", "torch-compile", "torch-graphs", "onnxruntime"]
BACKENDS = ("torch-eager", "torch-compile", "torch-graphs", "onnxruntime")


@dataclass(frozen=True)
class Request:
    """What a run asks for; "auto" is decided by `load_backend`."""

    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    attention: str = "auto"
    """As `TorchBackend`."""
    require_gpu: bool = False
    """Fail where "auto" would fall back to the CPU."""
    threads: int | None = None
    """CPU threads; default: all cores."""

    def refuse_for(self, what: str, fixed_bucket: int | None) -> None:
        """Raise for a way of running that serves the CPU, float32 and no choice at all.

        Raises:
            UsageError: anything else was asked for.
        """
        chosen = {
            "--device": self.device not in ("auto", "cpu") and self.device,
            "--dtype": self.dtype not in ("auto", "fp32") and self.dtype,
            "--backend": self.backend != "auto" and self.backend,
            "--attention": self.attention != "auto" and self.attention,
            "--require-gpu": self.require_gpu and "",
            "--fixed-bucket": fixed_bucket is not None and fixed_bucket,
        }
        wrong = [f"{name} {value}".rstrip() for name, value in chosen.items() if value is not False]
        if wrong:
            raise UsageError(f"{what} runs on the CPU in fp32 alone; leave out {', '.join(wrong)}")


def load_backend(source: str | Path | Bundle, request: Request) -> Backend:
    """Load a bundle's graph onto the backend asked for.

    "auto" is torch with CUDA graphs on a GPU. On a CPU it is what `fr-deploy doctor` measured to be the faster of
    torch and onnxruntime for this model on this machine, and torch where nothing was measured yet.

    Raises:
        ModelError, ResourceError: as `load_graph`; no such GPU, or a package is missing.
        UsageError: an unknown name; a backend that does not serve the device or number format; or bfloat16 does
            not keep the model's faces (`refuse_if_worse_than_saving`).
    """
    if request.backend not in ("auto", *BACKENDS):
        raise UsageError(f"backend is {request.backend!r}; allowed: auto, {', '.join(BACKENDS)}")
    place = choose_place(request.device, request.dtype, require_gpu=request.require_gpu)
    graph = load_graph(source)
    if place.device.type == "cpu":
        keep_freed_memory()
    chosen = request.backend if request.backend != "auto" else _automatic(graph, place)
    if chosen == "onnxruntime":
        if request.attention != "auto":
            raise UsageError(
                f"attention {request.attention} is torch's; onnxruntime computes its own"
            )
        return onnx_backend(graph, place, threads=request.threads)
    mode: Mode = next(mode for mode in MODES if chosen == f"torch-{mode}")
    backend = TorchBackend(graph, place, mode, request.attention)
    if place.dtype == "bf16":
        exact = TorchBackend(load_graph(source), Place(place.device, "fp32"))
        refuse_if_worse_than_saving(backend, exact)
        exact.close()
    return backend


def _automatic(graph: RestorationGraph, place: Place) -> str:
    if place.device.type == "cuda":
        return "torch-graphs"
    return fastest(graph) if place.dtype == "fp32" else "torch-eager"


def onnx_backend(graph: RestorationGraph, place: Place, *, threads: int | None = None) -> Backend:
    """The graph on onnxruntime, exported on first use and kept in the cache.

    Raises:
        UsageError: another place than the CPU in float32.
        ResourceError: onnxscript is missing.
    """
    if place.device.type != "cpu" or place.dtype != "fp32":
        raise UsageError(
            f"backend onnxruntime serves the CPU in fp32, not {place.device} in {place.dtype}; "
            "choose --backend auto, or export an engine"
        )
    from fr_deploy.runtime.onnx_backend import OnnxBackend

    # By name, as the CLI names its commands: fr_deploy stands below fr_export and does not import it.
    export = importlib.import_module("fr_export.cache").cached_onnx
    return OnnxBackend(export(graph), threads=threads)
