"""Every call of CUDA that engines are run with: cuda-python's bindings of the CUDA runtime (`cuda.bindings.runtime`).

No torch: engines run beside a torch that was built for the CPU.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fr_deploy.errors import ModelError
from fr_deploy.runtime.backend import OutOfMemoryError


class CudaError(ModelError):
    """A call of CUDA failed."""


class Cuda:
    """One GPU, one stream on it, and memory that is given back by `close`."""

    def __init__(self, runtime: Any, index: int) -> None:
        """Take a GPU.

        Args:
            runtime: the module `cuda.bindings.runtime`.
            index: of the GPU.

        Raises:
            CudaError: it cannot be used.
        """
        self._cuda, self._index = runtime, index
        self._memory: list[tuple[Callable[..., Any], Any]] = []
        """What gives something back, and what; the last first."""
        self.use()
        self.stream = self._do(
            runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking), "no stream"
        )
        self._memory.append((runtime.cudaStreamDestroy, self.stream))

    @property
    def handle(self) -> int:
        """The stream, as TensorRT takes it."""
        return int(self.stream)

    def use(self) -> None:
        """Make it the GPU of this thread."""
        self._do(self._cuda.cudaSetDevice(self._index), f"cuda:{self._index} cannot be used")

    def on_gpu(self, count: int) -> int:
        """The address of `count` bytes on the GPU.

        Raises:
            OutOfMemoryError: there are not so many.
        """
        address = self._do(self._cuda.cudaMalloc(count), f"{count} bytes on the GPU")
        self._memory.append((self._cuda.cudaFree, address))
        return int(address)

    def pinned(self, *shape: int) -> Tensor:
        """A uint8 tensor in main memory that the GPU copies from and to by itself.

        Raises:
            OutOfMemoryError: there is not so much.
        """
        count = 1
        for side in shape:
            count *= side
        address = self._do(self._cuda.cudaMallocHost(count), f"{count} bytes of pinned memory")
        self._memory.append((self._cuda.cudaFreeHost, address))
        buffer = (ctypes.c_uint8 * count).from_address(int(address))
        return torch.frombuffer(buffer, dtype=torch.uint8).view(shape)

    def to_gpu(self, address: int, source: Tensor) -> None:
        """Queue a copy of a pinned tensor, contiguous, to the GPU."""
        self._copy(address, source.data_ptr(), source.nbytes, "HostToDevice")

    def from_gpu(self, target: Tensor, address: int) -> None:
        """Queue a copy to a pinned tensor, contiguous, from the GPU."""
        self._copy(target.data_ptr(), address, target.nbytes, "DeviceToHost")

    def _copy(self, target: int, source: int, count: int, way: str) -> None:
        kinds = self._cuda.cudaMemcpyKind
        kind = (
            kinds.cudaMemcpyHostToDevice if way == "HostToDevice" else kinds.cudaMemcpyDeviceToHost
        )
        copied = self._cuda.cudaMemcpyAsync(target, source, count, kind, self.stream)
        self._do(copied, f"a copy of {count} bytes, {way}")

    def wait(self) -> None:
        """Until all that was queued is done."""
        self._do(self._cuda.cudaStreamSynchronize(self.stream), "the GPU's work")

    def record(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what `queue` queues as a CUDA graph, without doing it.

        Returns:
            What queues all of it again with one call.

        Raises:
            CudaError: something in it cannot be recorded.
        """
        cuda = self._cuda
        # Of this thread alone: what others do meanwhile, torch for one, does not end the recording.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do(cuda.cudaStreamBeginCapture(self.stream, mode), "recording")
        try:
            queue()
        except BaseException:
            cuda.cudaStreamEndCapture(self.stream)
            raise
        graph = self._do(cuda.cudaStreamEndCapture(self.stream), "what was recorded")
        try:
            launch = self._do(cuda.cudaGraphInstantiate(graph, 0), "a CUDA graph")
        finally:
            cuda.cudaGraphDestroy(graph)
        self._memory.append((cuda.cudaGraphExecDestroy, launch))
        return lambda: self._do(cuda.cudaGraphLaunch(launch, self.stream), "a CUDA graph's launch")

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self.use()
        while self._memory:
            give_back, what = self._memory.pop()
            give_back(what)

    def _do(self, answer: tuple[Any, ...], what: str) -> Any:
        error, *values = answer
        kinds = self._cuda.cudaError_t
        if error == kinds.cudaErrorMemoryAllocation:
            raise OutOfMemoryError(f"{what}: cuda:{self._index} is out of memory.")
        if error != kinds.cudaSuccess:
            raise CudaError(f"{what}: CUDA says {error.name} on cuda:{self._index}; see nvidia-smi")
        return values[0] if values else None
