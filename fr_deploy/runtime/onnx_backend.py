"""The restoration graph in onnxruntime, from the file that `fr-deploy export --whole` wrote."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.runtime.backend import OutOfMemoryError, require_faces
from fr_deploy.runtime.metadata import GraphMetadata
from fr_deploy.runtime.runner import BUCKETS

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxBackend:
    """Runs one exported graph; a context manager."""

    name = "onnxruntime"

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None) -> None:
        """Load a file and optimise it for this machine.

        Args:
            path: of the .onnx file; weights above 2 GB lie in the file beside it.
            device: "cpu", or "cuda" for the first GPU.
            threads: of one run on the CPU; by default those torch uses, one a core.

        Raises:
            ModelError: the file is missing, damaged, or no export of this program.
            ResourceError: onnxruntime has no such device here.
            UsageError: another device.
        """
        self.device = device
        self._session: Any = open_session(path, device, threads or torch.get_num_threads())
        self.metadata = GraphMetadata.of_props(
            self._session.get_modelmeta().custom_metadata_map, path
        )
        self.preset = self.metadata.preset
        self.dtype = {"float32": "fp32", "float16": "fp16"}[self.metadata.dtype]
        self.limit = BUCKETS[-1]
        self.size = _size(self._session, path)

    def run(self, faces: Tensor) -> Tensor:
        """Restore aligned faces.

        Args:
            faces: uint8 [B, S, S, 3] RGB on the CPU, S = `size`, B at least 1, any strides.

        Raises:
            UsageError: another shape, dtype or device, or the backend is closed.
            OutOfMemoryError: they do not fit into memory.
        """
        require_faces(faces, self.size, closed=self._session is None)
        try:
            (restored,) = self._session.run(["restored"], {"faces": faces.contiguous().numpy()})
        except Exception as error:  # its errors share no class but this one
            if "allocate memory" not in str(error):
                raise
            raise OutOfMemoryError(
                f"{len(faces)} faces of {self.size} px do not fit into the memory of {self.device}."
            ) from error
        return torch.from_numpy(restored)

    def close(self) -> None:
        """Free the session's memory; a second call does nothing."""
        self._session = None

    def __enter__(self) -> "OnnxBackend":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_session(path: Path, device: str, threads: int) -> ort.InferenceSession:
    """A file, loaded and optimised for this machine.

    Raises:
        ModelError, ResourceError, UsageError: as `OnnxBackend`.
    """
    if device not in PROVIDERS:
        raise UsageError(f"device is {device!r}; allowed are {', '.join(PROVIDERS)}")
    provider, present = PROVIDERS[device], ort.get_available_providers()
    if provider not in present:
        raise ResourceError(
            f"onnxruntime {ort.__version__} has no {provider} here, only {', '.join(present)}; "
            "in its place install the build for GPUs: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    if not path.is_file():
        raise ModelError(
            f"{path} is missing; make it with: fr-deploy export BUNDLE -o {path.parent} --whole"
        )
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its errors share no class but this one
        raise ModelError(f"{path} cannot be loaded: {error}") from error
    if provider not in session.get_providers():  # onnxruntime says so in its log, and falls back
        raise ResourceError(
            f"{provider} did not start here; its libraries (CUDA, cuDNN) may be missing"
        )
    return session


def _size(session: ort.InferenceSession, path: Path) -> int:
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    kind, shape = inputs.get("faces", ("nothing", []))
    if list(inputs) != ["faces"] or kind != "tensor(uint8)" or len(shape) != 4 or shape[3] != 3:
        raise ModelError(
            f"{path} takes {inputs}; expected one input 'faces', uint8 [batch, S, S, 3]"
        )
    return int(shape[1])
