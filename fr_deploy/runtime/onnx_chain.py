"""An exported directory in onnxruntime, on the CPU: its components one behind the other, through buffers made once."""

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from fr_deploy import manifest
from fr_deploy.manifest import BATCH, Component, Manifest
from fr_deploy.manifest_check import require_tensors
from fr_deploy.runtime.backend import OutOfMemoryError, require_faces
from fr_deploy.runtime.onnx_backend import open_session
from fr_deploy.runtime.profiles import padded

ELEMENTS = {
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
}
_BOUND = {"uint8": 2, "float32": 1, "float16": 10, "bfloat16": 16}
"""ONNX's numbers of the elements that go from one component to the next (TensorProto.DataType)."""


class OnnxChain:
    """`Backend` of a directory in the format onnx."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, folder: Path, of: Manifest, *, threads: int | None = None) -> None:
        """Load a directory that `manifest_check.check` has let pass.

        Args:
            folder: holds the files.
            of: its manifest.
            threads: of one run; by default those torch uses, one a core.

        Raises:
            ModelError: onnxruntime does not take a file, or one has other inputs or outputs than its manifest says.
        """
        self.dtype, self.size = of.precision, of.size
        self.limit = max(batches.most for batches in of.batches)
        self._batches, self._components = of.batches, of.components
        self._sessions = [
            _session(folder, component, threads or torch.get_num_threads())
            for component in of.components
        ]
        tensors = [of.components[0].inputs[0], *(c.outputs[0] for c in of.components)]
        self._buffers = [self._buffer(tensor) for tensor in tensors]
        self._bound: dict[int, list[Any]] = {}

    def run(self, faces: Tensor) -> Tensor:
        """As `Backend.run`; `faces` may have any strides.

        Raises:
            UsageError: another shape, dtype or device, more faces than the directory takes, or the backend is closed.
        """
        require_faces(faces, self.size, self.limit, closed=not self._sessions)
        count = padded(len(faces), self._batches)
        self._buffers[0][: len(faces)] = faces
        self._buffers[0][len(faces) : count] = faces[-1:]
        try:
            for session, bound in zip(self._sessions, self._bind(count), strict=True):
                session.run_with_iobinding(bound)
        except Exception as error:  # its errors share no class but this one
            if "allocate memory" not in str(error):
                raise
            raise OutOfMemoryError(
                f"{count} faces of {self.size} px do not fit into the memory of {self.device}."
            ) from error
        return self._buffers[-1][: len(faces)].clone()

    def close(self) -> None:
        """As `Backend.close`; a second call does nothing."""
        self._bound.clear()
        self._sessions.clear()
        self._buffers.clear()

    def _buffer(self, tensor: manifest.Tensor) -> Tensor:
        shape = [int(side) for side in tensor.shape[1:]]
        return torch.empty(self.limit, *shape, dtype=getattr(torch, tensor.dtype))

    def _bind(self, count: int) -> list[Any]:
        """Each session's input and output for a batch: a component writes where the next one reads."""
        if count not in self._bound:
            ends = zip(self._buffers, self._buffers[1:], strict=False)
            whole = zip(self._sessions, self._components, ends, strict=True)
            self._bound[count] = [
                _binding(session, component, given[:count], made[:count])
                for session, component, (given, made) in whole
            ]
        return self._bound[count]


def _session(folder: Path, component: Component, threads: int) -> ort.InferenceSession:
    file = component.file("onnx")
    assert file is not None, "parse_manifest lets no component pass without"
    path = folder / file.path
    session = open_session(path, "cpu", threads)
    sides = (
        ("inputs", component.inputs, session.get_inputs()),
        ("outputs", component.outputs, session.get_outputs()),
    )
    for side, expected, values in sides:
        require_tensors(str(path), side, expected, [_tensor(value) for value in values])
    return session


def _tensor(value: Any) -> manifest.Tensor:
    first, *rest = value.shape or [0]
    shape = (BATCH if isinstance(first, str) else first, *rest)
    return manifest.Tensor(value.name, ELEMENTS.get(value.type, value.type), shape)  # pyright: ignore[reportArgumentType]


def _binding(session: Any, component: Component, given: Tensor, made: Tensor) -> Any:
    bound = session.io_binding()
    taken, gives = component.inputs[0], component.outputs[0]
    bound.bind_input(taken.name, "cpu", 0, _BOUND[taken.dtype], list(given.shape), given.data_ptr())
    bound.bind_output(gives.name, "cpu", 0, _BOUND[gives.dtype], list(made.shape), made.data_ptr())
    return bound
