"""The half of `tensorrt_stand_in` that runs engines: an engine is an ONNX file, run by onnxruntime on CudaStandIn."""

import ctypes
from typing import Any

import numpy as np
import onnxruntime as ort

import tensorrt_stand_in
from cuda_stand_in import CudaStandIn
from tensorrt_stand_in import StandIn

KINDS = {
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(float)": ("FLOAT", np.float32),
}
SCRATCH = 1000


class RuntimeStandIn(StandIn):
    """`profiles`: least, best and most of each; `cuda`: what it runs on; `refuses`: methods that answer no."""

    def __init__(self, version: str, cuda: CudaStandIn, **scenario: Any) -> None:
        values = {"profiles": ((1, 4, 8),), "refuses": (), "capturable": True, "static": False}
        super().__init__(version, cuda=cuda, **values | scenario)
        self.__name__ = version.partition("-")[0]


def _deserialize(runtime: Any, plan: Any) -> Any:
    scenario = runtime.stand_in.scenario
    if "cuda" not in scenario:
        return runtime.stand_in._classes["ICudaEngine"]()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(bytes(plan), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        runtime.given[0].log(_severity("ERROR"), f"no plan: {type(error).__name__}")
        return None
    engine = runtime.stand_in._classes["ICudaEngine"]()
    engine.values["session"] = session
    return engine


def _severity(name: str) -> Any:
    return type("Severity", (), {"name": name})()


def _values(engine: Any) -> list[Any]:
    session = engine.values["session"]
    return [*session.get_inputs(), *session.get_outputs()]


def _value(engine: Any, name: str) -> Any:
    return next(value for value in _values(engine) if value.name == name)


def _mode(engine: Any, name: str) -> Any:
    taken = name in {value.name for value in engine.values["session"].get_inputs()}
    return getattr(engine.stand_in._classes["TensorIOMode"], "INPUT" if taken else "OUTPUT")


def _dtype(engine: Any, name: str) -> Any:
    return getattr(engine.stand_in._classes["DataType"], KINDS[_value(engine, name).type][0])


def _shape(engine: Any, name: str) -> tuple[int, ...]:
    scenario = engine.stand_in.scenario
    batch = scenario["profiles"][0][2] if scenario["static"] else -1
    return (batch, *_value(engine, name).shape[1:])


def _profile_shape(engine: Any, name: str, index: int) -> list[tuple[int, ...]]:
    rest = _shape(engine, name)[1:]
    return [(batch, *rest) for batch in engine.stand_in.scenario["profiles"][index]]


def _context(engine: Any, strategy: Any) -> Any:
    assert strategy.name == "USER_MANAGED"
    if "create_execution_context" in engine.stand_in.scenario["refuses"]:
        return None
    context = engine.stand_in._classes["IExecutionContext"]()
    context.values["engine"] = engine
    return context


def _set_memory(context: Any, address: int, size: int) -> None:
    assert size >= SCRATCH
    assert context.stand_in.scenario["cuda"].allocated(address, size)
    context.values["scratch"] = address


def _set_profile(context: Any, index: int, stream: int) -> bool:
    context.values["profile"] = context.stand_in.scenario["profiles"][index]
    return "set_optimization_profile_async" not in context.stand_in.scenario["refuses"]


def _set_shape(context: Any, name: str, shape: tuple[int, ...]) -> bool:
    least, _, most = context.values["profile"]
    context.values[f"shape of {name}"] = shape
    return (
        least <= shape[0] <= most and "set_input_shape" not in context.stand_in.scenario["refuses"]
    )


def _set_address(context: Any, name: str, address: int) -> bool:
    context.values[f"address of {name}"] = address
    return "set_tensor_address" not in context.stand_in.scenario["refuses"]


def _missing(context: Any) -> list[str]:
    taken = [value.name for value in context.engine.values["session"].get_inputs()]
    refused = "infer_shapes" in context.stand_in.scenario["refuses"]
    return (
        taken if refused else [name for name in taken if f"shape of {name}" not in context.values]
    )


def _execute(context: Any, handle: int) -> bool:
    scenario = context.stand_in.scenario
    cuda: CudaStandIn = scenario["cuda"]
    assert handle == int(cuda.stream)
    if "execute_async_v3" in scenario["refuses"]:
        return False
    if cuda.stream.recording is not None and "recording" in scenario["refuses"]:
        return False
    session = context.engine.values["session"]
    assert context.values["scratch"]
    assert all(f"address of {value.name}" in context.values for value in _values(context.engine))
    cuda.stream.add(lambda: _run(context, session, cuda))
    return True


def _run(context: Any, session: Any, cuda: CudaStandIn) -> None:
    feeds = {}
    for value in session.get_inputs():
        shape, kind = context.values[f"shape of {value.name}"], KINDS[value.type][1]
        feeds[value.name] = np.empty(shape, kind)
        count = feeds[value.name].nbytes
        assert cuda.allocated(context.values[f"address of {value.name}"], count)
        ctypes.memmove(
            feeds[value.name].ctypes.data, context.values[f"address of {value.name}"], count
        )
    names = [value.name for value in session.get_outputs()]
    for name, made in zip(names, session.run(names, feeds), strict=True):
        made = np.ascontiguousarray(made)
        assert cuda.allocated(context.values[f"address of {name}"], made.nbytes)
        ctypes.memmove(context.values[f"address of {name}"], made.ctypes.data, made.nbytes)


tensorrt_stand_in._ANSWERS.update(
    {
        ("Runtime", "deserialize_cuda_engine"): _deserialize,
        ("ICudaEngine", "num_io_tensors"): property(lambda self: len(_values(self))),
        ("ICudaEngine", "get_tensor_name"): lambda self, index: _values(self)[index].name,
        ("ICudaEngine", "get_tensor_mode"): _mode,
        ("ICudaEngine", "get_tensor_dtype"): _dtype,
        ("ICudaEngine", "get_tensor_shape"): _shape,
        ("ICudaEngine", "num_optimization_profiles"): property(
            lambda self: len(self.stand_in.scenario["profiles"])
        ),
        ("ICudaEngine", "get_tensor_profile_shape"): _profile_shape,
        ("ICudaEngine", "device_memory_size_v2"): property(lambda self: SCRATCH),
        ("ICudaEngine", "create_execution_context"): _context,
        ("IExecutionContext", "set_device_memory"): _set_memory,
        ("IExecutionContext", "set_optimization_profile_async"): _set_profile,
        ("IExecutionContext", "set_input_shape"): _set_shape,
        ("IExecutionContext", "set_tensor_address"): _set_address,
        ("IExecutionContext", "infer_shapes"): _missing,
        ("IExecutionContext", "execute_async_v3"): _execute,
        ("IExecutionContext", "is_stream_capturable"): lambda self, stream: self.stand_in.scenario[
            "capturable"
        ],
    }
)
