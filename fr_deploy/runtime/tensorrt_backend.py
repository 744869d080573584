"""An exported directory on a GPU, in TensorRT or TensorRT-RTX: one code for both."""

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr_deploy import manifest
from fr_deploy.errors import ModelError, ResourceError
from fr_deploy.manifest import Batches, Component, Manifest
from fr_deploy.manifest_check import require_tensors
from fr_deploy.manifest_files import checked_bytes
from fr_deploy.runtime.backend import require_faces
from fr_deploy.runtime.cuda_calls import Cuda
from fr_deploy.runtime.here import bindings
from fr_deploy.runtime.profiles import padded, profile
from fr_deploy.runtime.tensorrt_calls import Engine, recordable

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BYTES = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}
_log = logging.getLogger("fr_deploy")


@dataclass
class _Recorded:
    """One batch: what runs it, and what that needs alive."""

    launch: Callable[[], object]
    contexts: list[Any] = field(default_factory=list[Any])


class TensorRtBackend:
    """`Backend` of a directory in a TensorRT format.

    Memory is taken once: for the largest batch, and one piece of scratch memory, which the engines use in turn. A
    batch size that comes for the first time gets its execution contexts and one CUDA graph, from the copy of the
    faces to the copy of the pictures; where it cannot be recorded it runs launch by launch, and a warning says why.
    """

    def __init__(self, folder: Path, of: Manifest, gpu: str, index: int = 0) -> None:
        """Load a directory that `manifest_check.check` has let pass for this GPU.

        Args:
            folder: holds the engines.
            of: its manifest.
            gpu: name of the GPU.
            index: of the GPU.

        Raises:
            ModelError: an engine is refused, or has other inputs, outputs or batches than its manifest says.
            ResourceError: TensorRT or cuda-python is missing, or there is not enough memory on the GPU.
        """
        self.name, self.dtype, self.size = of.format, of.precision, of.size
        self.device = f"cuda:{index} ({gpu})"
        self.limit = max(batches.most for batches in of.batches)
        self._batches, self._components = of.batches, of.components
        self._trt = _module(of.format)
        self._cuda = Cuda(bindings("runtime"), index)
        self._closed = False
        self._recorded: dict[int, _Recorded] = {}
        try:
            self._engines = [_engine(self._trt, folder, c, of.batches) for c in of.components]
            self._take_memory()
        except BaseException:
            self.close()
            raise

    def run(self, faces: Tensor) -> Tensor:
        """As `Backend.run`; `faces` may have any strides.

        Raises:
            UsageError: another shape, dtype or device, more faces than the engines take, or the backend is closed.
        """
        require_faces(faces, self.size, self.limit, closed=self._closed)
        self._cuda.use()
        count = padded(len(faces), self._batches)
        self._faces[: len(faces)] = faces
        self._faces[len(faces) : count] = faces[-1:]
        if count not in self._recorded:
            self._recorded[count] = self._record(count)
        self._recorded[count].launch()
        self._cuda.wait()
        return self._restored[: len(faces)].clone()

    def outputs(self, faces: Tensor) -> dict[str, Tensor]:
        """All that the engines give for these faces, by name: what `fr-deploy verify` compares.

        Args:
            faces: as `run`.
        """
        self.run(faces)
        made: dict[str, Tensor] = {}
        for component, addresses in zip(self._components, self._addresses, strict=True):
            for tensor in component.outputs:
                shape = [len(faces), *(int(side) for side in tensor.shape[1:])]
                copy = self._cuda.pinned(math.prod(shape) * BYTES[tensor.dtype])
                self._cuda.from_gpu(copy, addresses[tensor.name])
                self._cuda.wait()
                made[tensor.name] = copy.clone().view(getattr(torch, tensor.dtype)).view(shape)
        return made

    def close(self) -> None:
        """As `Backend.close`; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._recorded.clear()  # contexts before engines, engines before their memory
            self._engines = []
            self._cuda.close()

    def _take_memory(self) -> None:
        shape = (self.limit, self.size, self.size, 3)
        self._faces, self._restored = self._cuda.pinned(*shape), self._cuda.pinned(*shape)
        first = self._components[0].inputs[0]
        given = self._on_gpu(first)
        self._first, self._addresses = given, list[dict[str, int]]()
        for component in self._components:
            made = {tensor.name: self._on_gpu(tensor) for tensor in component.outputs}
            self._addresses.append({component.inputs[0].name: given} | made)
            given = made[component.outputs[0].name]
        self._last = given
        most = max(1, *(engine.scratch for engine in self._engines))
        self._scratch = (self._cuda.on_gpu(most), most)

    def _on_gpu(self, tensor: manifest.Tensor) -> int:
        count = self.limit * BYTES[tensor.dtype]
        for side in tensor.shape[1:]:
            count *= int(side)
        return self._cuda.on_gpu(count)

    def _record(self, count: int) -> _Recorded:
        stream = self._cuda.handle
        contexts = [
            engine.context(profile(count, self._batches), self._scratch, stream)
            for engine in self._engines
        ]
        self._cuda.wait()
        for at, context in enumerate(contexts):
            taken = self._components[at].inputs[0]
            shapes = {taken.name: (count, *(int(side) for side in taken.shape[1:]))}
            self._engines[at].bind(context, shapes, self._addresses[at])

        def queue() -> None:
            self._cuda.to_gpu(self._first, self._faces[:count])
            for engine, context in zip(self._engines, contexts, strict=True):
                engine.queue(context, stream)
            self._cuda.from_gpu(self._restored[:count], self._last)

        queue()  # what TensorRT loads or compiles when a batch first comes cannot be recorded
        self._cuda.wait()
        return _Recorded(self._graph(queue, contexts, count), contexts)

    def _graph(
        self, queue: Callable[[], None], contexts: Sequence[Any], count: int
    ) -> Callable[[], object]:
        try:
            if all(recordable(self._trt, context, self._cuda.handle) for context in contexts):
                return self._cuda.record(queue)
            reason: object = f"{self.name} says that its engines cannot be recorded"
        except ModelError as error:  # it ran a moment ago, so recording is what fails
            reason = error
        _log.warning("no CUDA graph for %d faces, they run launch by launch: %s", count, reason)
        return queue


def _module(form: str) -> Any:
    try:
        return importlib.import_module(MODULES[form])
    except ImportError as error:
        raise ResourceError(f"{form} is installed and cannot be imported: {error}") from error


def _engine(trt: Any, folder: Path, component: Component, batches: Sequence[Batches]) -> Engine:
    file = component.file("engine")
    assert file is not None, "parse_manifest lets no component pass without"
    engine = Engine(trt, checked_bytes(folder, file), str(folder / file.path))
    bucket = batches[0].most if len(batches) == 1 and batches[0].least == batches[0].most else None
    for side, expected in (("inputs", component.inputs), ("outputs", component.outputs)):
        require_tensors(engine.where, side, expected, engine.tensors(side, bucket))
    found = engine.batches(component.inputs[0].name)
    if found != list(batches):
        raise ModelError(
            f"{engine.where}: its batches are {_shown(found)}, the manifest says {_shown(batches)}; export it again: "
            "fr-deploy export BUNDLE -o DIR"
        )
    return engine


def _shown(batches: Sequence[Batches]) -> str:
    return ", ".join(f"{b.least}:{b.best}:{b.most}" for b in batches)
