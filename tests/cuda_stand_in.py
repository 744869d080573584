"""The CUDA runtime as cuda-python binds it, on main memory: for the control flow of what runs engines.

Names and numbers of arguments are those of the real `cuda.bindings.runtime`, which imports without a GPU. Work is
queued and done when its stream is waited for; a copy or a run outside of what was allocated fails.
"""

import ctypes
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

real = pytest.importorskip("cuda.bindings.runtime", reason="pip install 'fr-deploy[cuda]'")
KINDS = real.cudaError_t
GPU = "NVIDIA Stand-in"


class Stream:
    """A stream, or what was recorded on it."""

    def __init__(self, number: int = 7) -> None:
        self.number = number
        self.queued: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.number

    def add(self, work: Callable[[], None]) -> None:
        (self.queued if self.recording is None else self.recording).append(work)


class CudaStandIn:
    """`cuda.bindings.runtime` of a machine with one GPU; `fails` names calls and what they answer."""

    def __init__(self, **fails: Any) -> None:
        self.fails, self.used = fails, list[str]()
        self.memory: dict[int, Any] = {}
        self.stream = Stream()
        self.graphs: list[list[Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(real, name):
            raise AttributeError(f"cuda.bindings.runtime has no {name}")
        mine = type(self).__dict__.get(f"do_{name}")
        if mine is None:
            return getattr(real, name)  # an enumeration or a constant
        self.used.append(name)
        arguments = re.search(rf"^{name}\((.*?)\)", real.__dict__[name].__doc__ or "", re.MULTILINE)
        assert arguments, name

        def call(*given: Any) -> Any:
            wanted = [a for a in arguments[1].split(",") if a.strip()]
            assert len(given) == len(wanted), f"{arguments[0]}: {given}"
            if (fail := self.fails.get(name)) is not None:
                if callable(fail):
                    fail = fail(*given)
                if fail is not None:
                    return (fail, *([None] if name != "cudaStreamSynchronize" else []))
            return (KINDS.cudaSuccess, *mine(self, *given))

        return call

    def allocated(self, address: int, count: int) -> bool:
        """Whether so many bytes there belong to one allocation."""
        return any(a <= address and address + count <= a + len(b) for a, b in self.memory.items())

    def _allocate(self, count: int) -> tuple[int]:
        buffer = (ctypes.c_uint8 * count)(*b"\xa5" * min(count, 64))
        self.memory[ctypes.addressof(buffer)] = buffer
        return (ctypes.addressof(buffer),)

    def _free(self, address: int) -> tuple[()]:
        del self.memory[address]
        return ()

    def do_cudaGetDeviceCount(self) -> tuple[int]:
        return (1,)

    def do_cudaGetDeviceProperties(self, index: int) -> tuple[Any]:
        return (SimpleNamespace(name=GPU.encode() + b"\0", major=8, minor=9),)

    def do_cudaSetDevice(self, index: int) -> tuple[()]:
        return ()

    def do_cudaStreamCreateWithFlags(self, flags: int) -> tuple[Stream]:
        assert flags == real.cudaStreamNonBlocking
        return (self.stream,)

    def do_cudaStreamDestroy(self, stream: Stream) -> tuple[()]:
        assert not self.memory, "memory outlives the stream"
        return ()

    do_cudaMalloc = do_cudaMallocHost = _allocate
    do_cudaFree = do_cudaFreeHost = _free

    def do_cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: Any, stream: Stream
    ) -> tuple[()]:
        assert kind in (
            real.cudaMemcpyKind.cudaMemcpyHostToDevice,
            real.cudaMemcpyKind.cudaMemcpyDeviceToHost,
        )
        assert self.allocated(target, count)
        assert self.allocated(source, count)
        stream.add(lambda: ctypes.memmove(target, source, count) and None)
        return ()

    def do_cudaStreamSynchronize(self, stream: Stream) -> tuple[()]:
        assert stream.recording is None, "a stream that records cannot be waited for"
        while stream.queued:
            stream.queued.pop(0)()
        return ()

    def do_cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[()]:
        assert mode == real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream.recording is None
        stream.recording = []
        return ()

    def do_cudaStreamEndCapture(self, stream: Stream) -> tuple[list[Callable[[], None]]]:
        recorded, stream.recording = stream.recording, None
        assert recorded is not None
        return (recorded,)

    def do_cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[list[Callable[[], None]]]:
        self.graphs.append(list(graph))
        return (self.graphs[-1],)

    def do_cudaGraphDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def do_cudaGraphLaunch(self, graph: Any, stream: Stream) -> tuple[()]:
        for work in graph:
            stream.add(work)
        return ()

    def do_cudaGraphExecDestroy(self, graph: Any) -> tuple[()]:
        self.graphs.remove(graph)
        return ()
