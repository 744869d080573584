"""Every call of TensorRT that runs an engine, for TensorRT 10 and 11 and TensorRT-RTX.

tests/test_runtime_tensorrt.py compares each name used here with the three interfaces.
"""

from collections.abc import Mapping
from typing import Any

from fr_deploy.errors import ModelError, ResourceError
from fr_deploy.manifest import BATCH, Batches, Tensor

LOUD = ("WARNING", "ERROR", "INTERNAL_ERROR")


class Engine:
    """One engine, loaded."""

    def __init__(self, trt: Any, plan: bytes, where: str) -> None:
        """Load an engine. It is executable code: what is not known to be ours must not come here.

        Args:
            trt: the module `tensorrt` or `tensorrt_rtx`.
            plan: the file's bytes.
            where: the file, for messages.

        Raises:
            ModelError: TensorRT does not take it.
        """
        self._trt, self.where, self.said = trt, where, list[str]()
        self._logger = _logger(trt, self.said)
        self._runtime = trt.Runtime(self._logger)
        # An engine may carry code for the CPU, too; ours carry none, so none is let in.
        self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ModelError(self._refusal("the engine is refused"))

    def tensors(self, side: str, bucket: int | None = None) -> list[Tensor]:
        """What it takes or gives, as it says.

        Args:
            side: "inputs" or "outputs".
            bucket: its one batch, if it was built for one: TensorRT may then say that in place of a variable batch.
        """
        engine, modes = self._engine, self._trt.TensorIOMode
        mode = {"inputs": modes.INPUT, "outputs": modes.OUTPUT}[side]
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            self._tensor(name, bucket) for name in names if engine.get_tensor_mode(name) == mode
        ]

    def _tensor(self, name: str, bucket: int | None) -> Tensor:
        kinds = self._trt.DataType
        elements = {
            kinds.UINT8: "uint8",
            kinds.INT32: "int32",
            kinds.INT64: "int64",
            kinds.FLOAT: "float32",
            kinds.HALF: "float16",
            kinds.BF16: "bfloat16",
        }
        kind = self._engine.get_tensor_dtype(name)
        first, *rest = tuple(self._engine.get_tensor_shape(name))
        shape = (BATCH if first in (-1, bucket) else first, *rest)
        return Tensor(name, elements.get(kind, kind.name), shape)  # pyright: ignore[reportArgumentType]

    def batches(self, name: str) -> list[Batches]:
        """The batches of an input, by optimization profile."""
        count = self._engine.num_optimization_profiles
        shapes = (self._engine.get_tensor_profile_shape(name, index) for index in range(count))
        return [Batches(*(next(iter(shape)) for shape in of)) for of in shapes]

    @property
    def scratch(self) -> int:
        """Bytes on the GPU that it needs beside its weights while it runs."""
        return self._engine.device_memory_size_v2

    def context(self, profile: int, scratch: tuple[int, int], stream: int) -> Any:
        """One that runs it in a profile, in memory that others use when it does not run.

        Args:
            profile: index of the optimization profile.
            scratch: address and size of that memory.
            stream: a stream's handle; waited for by the caller before the first run.

        Raises:
            ResourceError: it cannot be made, for lack of memory, most likely.
            ModelError: there is no such profile.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise ResourceError(self._refusal("no execution context can be made"))
        context.set_device_memory(*scratch)
        if not context.set_optimization_profile_async(profile, stream):
            raise ModelError(self._refusal(f"profile {profile} is refused"))
        return context

    def bind(
        self, context: Any, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]
    ) -> None:
        """Say what a context reads and writes.

        Args:
            context: as `context` made it.
            shapes: of its inputs.
            addresses: of its inputs and outputs, on the GPU.

        Raises:
            ModelError: a shape or an address is refused, or a shape is missing.
        """
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ModelError(self._refusal(f"{name} {list(shape)} is refused"))
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise ModelError(self._refusal(f"the memory of {name} is refused"))
        if missing := context.infer_shapes():
            raise ModelError(self._refusal(f"{', '.join(missing)} has no shape"))

    def queue(self, context: Any, stream: int) -> None:
        """Queue one run.

        Raises:
            ModelError: it is refused.
        """
        if not context.execute_async_v3(stream):
            raise ModelError(self._refusal("the engine does not run"))

    def _refusal(self, what: str) -> str:
        said = "; ".join(self.said[-3:]) or "it gives no reason"
        return f"{self.where}: {what} by {self._trt.__name__} {self._trt.__version__}: {said}"


def recordable(trt: Any, context: Any, stream: int) -> bool:
    """Whether a context's run can be recorded as a CUDA graph; TensorRT-RTX alone can tell, and needs to.

    It compiles kernels for the shapes at hand while it runs.
    """
    return trt.__name__ != "tensorrt_rtx" or context.is_stream_capturable(stream)


def _logger(trt: Any, said: list[str]) -> Any:
    class Logger(trt.ILogger):
        """Warnings and worse."""

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in LOUD:
                said.append(msg.strip())

    return Logger()
