"""What runs engines, against the interfaces of TensorRT 10, 11, TensorRT-RTX and cuda-python; no engine is run here.

The stand-ins hold every name and call to the interfaces, and every copy and run to the memory allocated. An engine is
an ONNX file to them, so what comes out is what torch restores, or the way through the buffers is wrong.
"""

import ast
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cuda_stand_in import GPU, KINDS, CudaStandIn
from exported_toy import as_engines, pictures
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import Batches, Gpu, Manifest
from fr_deploy.manifest_check import check
from fr_deploy.runtime import cuda_calls, here, tensorrt_backend, tensorrt_calls
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_deploy.runtime.backend import OutOfMemoryError
from fr_deploy.runtime.here import look
from fr_deploy.runtime.tensorrt_backend import TensorRtBackend
from tensorrt_runtime_stand_in import RuntimeStandIn
from tensorrt_stand_in import VERSIONS

RTX = next(version for version in VERSIONS if "rtx" in version)
FULL = next(version for version in VERSIONS if version != RTX)


class Machine:
    """One directory of engines, and a GPU of stand-ins to run it on."""

    def __init__(self, source: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = Path(shutil.copytree(source, folder))
        self.patch = patch
        self.trt: Any = None
        self.cuda = CudaStandIn()

    def load(
        self, version: str, *, fails: dict[str, Any] | None = None, **scenario: Any
    ) -> TensorRtBackend:
        profiles = scenario.get("profiles", ((1, 4, 8),))
        form = "tensorrt-rtx" if version == RTX else "tensorrt"
        number = version.rpartition("-")[2]
        gpu = Gpu(None, ("8.9",), "580.65") if version == RTX else Gpu(GPU, ("8.9",), "580.65")
        batches = tuple(Batches(*p) for p in profiles)
        as_engines(self.folder, form, number, gpu, batches=batches)
        self.cuda = CudaStandIn(**fails or {})
        self.trt = RuntimeStandIn(version, self.cuda, **scenario)
        self.patch.setattr(tensorrt_backend, "_module", lambda form: self.trt)
        self.patch.setattr(tensorrt_backend, "bindings", lambda name: self.cuda)
        nvml = type("Nvml", (), {"init_v2": int, "system_get_driver_version": lambda: "580.65.06"})
        modules = {"runtime": self.cuda, "nvml": nvml}
        self.patch.setattr(here, "bindings", lambda name: modules[name])
        self.patch.setattr(here, "version", lambda name: number)
        return TensorRtBackend(self.folder, check(self.folder, look()), GPU)


@pytest.fixture
def machine(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(exported, tmp_path / "engines", monkeypatch)


def close(backend: TensorRtBackend, which: slice) -> bool:
    """Whether some of the faces come out as torch restores them."""
    faces, expected = pictures()
    return agree(backend.run(faces[which]), expected[which]).psnr >= 60


@pytest.mark.parametrize("version", VERSIONS)
def test_the_way_through_the_buffers(version: str, machine: Machine) -> None:
    backend = machine.load(version)
    assert backend.device == f"cuda:0 ({GPU})"
    assert (backend.dtype, backend.size, backend.limit) == ("fp32", 64, 8)
    for batch in (1, 3, 8, 3):
        assert close(backend, slice(-batch, None))
    assert len(machine.cuda.graphs) == 3, "one graph a batch size"
    assert machine.cuda.used.count("cudaGraphLaunch") == 4
    allocations = machine.cuda.used.count("cudaMalloc")
    assert allocations == 6 + 1, "of each tensor, and one scratch; none in a run"
    contexts = [
        thing for thing in machine.trt.objects if type(thing).__name__ == "IExecutionContext"
    ]
    assert len(contexts) == 3 * 4
    assert len({thing.values["scratch"] for thing in contexts}) == 1
    runtimes = [thing for thing in machine.trt.objects if type(thing).__name__ == "Runtime"]
    assert {thing.values["engine_host_code_allowed"] for thing in runtimes} == {False}
    backend.close()
    backend.close()
    assert not machine.cuda.memory
    assert not machine.cuda.graphs
    with pytest.raises(UsageError, match="the backend is closed"):
        backend.run(random_pictures(64, 1))


def test_buckets_are_padded_and_run_in_their_profiles(machine: Machine) -> None:
    backend = machine.load(RTX, profiles=((1, 1, 1), (4, 4, 4)))
    assert close(backend, slice(0, 3))
    contexts = [t for t in machine.trt.objects if type(t).__name__ == "IExecutionContext"]
    given = [args for thing in contexts for name, args in thing.calls if "profile" in name]
    assert given == [(1, 7)] * 4
    with pytest.raises(UsageError, match="5 faces at once; allowed are 4"):
        backend.run(random_pictures(64, 5))


def test_an_engine_of_one_batch_may_say_so(machine: Machine) -> None:
    backend = machine.load(FULL, profiles=((4, 4, 4),), static=True)
    assert close(backend, slice(2, 6))


@pytest.mark.parametrize("why", ["capturable", "recording", "instantiate"])
def test_without_a_graph_it_runs_launch_by_launch(
    why: str, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    scenario: dict[str, dict[str, Any]] = {
        "capturable": {"capturable": False},
        "recording": {"refuses": ("recording",)},
        "instantiate": {"fails": {"cudaGraphInstantiate": KINDS.cudaErrorStreamCaptureUnsupported}},
    }
    with caplog.at_level(logging.WARNING, "fr_deploy"):
        backend = machine.load(RTX, **scenario[why])
        assert close(backend, slice(0, 2))
        assert close(backend, slice(4, 6))
    said = [
        record.message for record in caplog.records if "no CUDA graph for 2 faces" in record.message
    ]
    assert len(said) == 1
    reason = {
        "capturable": "tensorrt-rtx says that its engines cannot be recorded",
        "recording": "encoder.engine: the engine does not run",
        "instantiate": "CUDA says cudaErrorStreamCaptureUnsupported on cuda:0",
    }
    assert reason[why] in said[0]
    assert machine.cuda.stream.recording is None
    backend.close()
    assert not machine.cuda.memory


def test_memory_that_does_not_suffice(machine: Machine) -> None:
    full = KINDS.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemoryError, match="bytes on the GPU: cuda:0 is out of memory"):
        machine.load(RTX, fails={"cudaMalloc": lambda count: full if count == 1000 else None})
    assert not machine.cuda.memory, "what was taken is given back"
    with pytest.raises(OutOfMemoryError, match="bytes of pinned memory: cuda:0 is out of memory"):
        machine.load(RTX, fails={"cudaMallocHost": full})
    backend = machine.load(RTX, refuses=("create_execution_context",))
    with pytest.raises(ResourceError, match=r"encoder.engine: no execution context can be made"):
        backend.run(random_pictures(64, 1))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "set_optimization_profile_async",
            "profile 0 is refused by tensorrt_rtx 1.7.1.116: it gives",
        ),
        ("set_input_shape", r"faces \[1, 64, 64, 3\] is refused by"),
        ("set_tensor_address", "the memory of faces is refused by"),
        ("infer_shapes", "faces has no shape by"),
        ("execute_async_v3", "the engine does not run by"),
    ],
)
def test_what_tensorrt_refuses_is_an_error(method: str, message: str, machine: Machine) -> None:
    backend = machine.load(RTX, refuses=(method,))
    with pytest.raises(ModelError, match=message):
        backend.run(random_pictures(64, 1))


def test_the_gpu_fails(machine: Machine) -> None:
    illegal = KINDS.cudaErrorIllegalAddress
    with pytest.raises(ModelError, match="the GPU's work: CUDA says cudaErrorIllegalAddress"):
        machine.load(RTX, fails={"cudaStreamSynchronize": illegal}).run(random_pictures(64, 1))
    with pytest.raises(ModelError, match="cuda:0 cannot be used: CUDA says cudaErrorInvalidDevice"):
        machine.load(RTX, fails={"cudaSetDevice": KINDS.cudaErrorInvalidDevice})


def manifest_of(machine: Machine) -> Manifest:
    return check(machine.folder, look())


def test_an_engine_that_is_not_what_its_manifest_says(machine: Machine) -> None:
    machine.load(RTX).close()
    manifest = manifest_of(machine)
    wrong = replace(manifest, batches=(Batches(1, 4, 4),))
    with pytest.raises(ModelError, match="its batches are 1:4:8, the manifest says 1:4:4; export"):
        TensorRtBackend(machine.folder, wrong, GPU)
    renamed = replace(manifest.components[0].inputs[0], name="photos")
    encoder = replace(manifest.components[0], inputs=(renamed,))
    wrong = replace(manifest, components=(encoder, *manifest.components[1:]))
    with pytest.raises(
        ModelError, match=r"encoder.engine: inputs 'photos': the manifest says uint8"
    ):
        TensorRtBackend(machine.folder, wrong, GPU)


def test_an_engine_changed_after_the_check_is_never_loaded(machine: Machine) -> None:
    machine.load(RTX).close()
    manifest = manifest_of(machine)
    path = machine.folder / "unet.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    before = len([t for t in machine.trt.objects if type(t).__name__ == "Runtime"])
    with pytest.raises(ModelError, match="was changed while it was read"):
        TensorRtBackend(machine.folder, manifest, GPU)
    after = len([t for t in machine.trt.objects if type(t).__name__ == "Runtime"])
    assert after - before == 2, "the encoder's and the adapter's"


def test_what_is_no_engine_is_refused_with_what_tensorrt_said(machine: Machine) -> None:
    machine.load(RTX)
    (machine.folder / "encoder.onnx").write_bytes(b"no engine")
    with pytest.raises(
        ModelError, match=r"encoder.engine: the engine is refused by tensorrt_rtx .*: no plan"
    ):
        machine.load(RTX)


def test_looking_at_this_machine(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.load(RTX)
    found = look()
    assert (found.gpu, found.capability, found.driver) == (GPU, "8.9", "580.65.06")
    assert found.versions["tensorrt-rtx"] == RTX.rpartition("-")[2]
    assert "there is no cuda:1, only 1 from cuda:0 on" in look(1).no_gpu
    poor = CudaStandIn(cudaGetDeviceCount=KINDS.cudaErrorInsufficientDriver)
    monkeypatch.setattr(here, "bindings", lambda name: poor)
    found = look()
    assert found.gpu is None
    assert "(cudaErrorInsufficientDriver); look at: nvidia-smi" in found.no_gpu
    with pytest.raises(
        ResourceError, match="holds engines for NVIDIA GPUs, and there is none: CUDA"
    ):
        check(machine.folder, found)


def test_without_stand_ins_there_is_a_reason() -> None:
    found = look()
    assert (found.gpu is None) == bool(found.no_gpu)
    assert (found.gpu is None) == (not torch.cuda.is_available())


def attributes(module: Any) -> set[str]:
    tree = ast.parse(Path(module.__file__).read_text())
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not called & {"getattr", "setattr", "hasattr", "eval", "vars"}, (
        "a name no test could see"
    )
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_name_that_runs_engines_was_met_above(machine: Machine) -> None:
    """So a name that a version lacks fails a run above, and one that no run meets fails here."""
    used: set[str] = set()
    for version in VERSIONS:
        backend = machine.load(version)
        backend.run(random_pictures(64, 1))
        machine.trt.DataType  # noqa: B018
        used |= {name for pair in machine.trt.used for name in pair}
        backend.close()
    ours = set(dir(tensorrt_calls.Engine)) | set(dir(list)) | set(dir(str)) | set(dir(dict))
    ours |= {"_trt", "_logger", "_runtime", "_engine", "where", "said", "__name__", "__version__"}
    assert attributes(tensorrt_calls) - ours - {"name"} <= used
    cuda = {name for name in attributes(cuda_calls) if name.startswith("cuda")}
    met = set(machine.cuda.used)
    plain = {"cudaMemcpyKind", "cudaStreamCaptureMode", "cudaError_t", "cudaStreamNonBlocking"}
    plain |= {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaErrorMemoryAllocation"}
    plain |= {"cudaSuccess", "cudaStreamCaptureModeThreadLocal"}
    assert cuda - plain <= met
