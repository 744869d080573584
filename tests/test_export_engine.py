"""Engines: what is refused before a build, and what a dying build leaves."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from engine_cases import export
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_export import engine
from fr_export.engine import build_engine, half_of_layers
from fr_export.engine_estimate import estimate_engine, free_memory, require_room
from fr_export.engine_graph import half_fraction, read_graph
from fr_export.engine_options import BatchRange, EngineOptions
from fr_export.engine_worker import peak_memory

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("half") / "half.onnx", torch.float16)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("single") / "single.onnx", torch.float32)


def test_batches() -> None:
    assert BatchRange.of("1:4:8") == BatchRange(1, 4, 8)
    assert BatchRange.of("4") == BatchRange(4, 4, 4)
    assert [str(BatchRange.of(text)) for text in ("1:4:8", "4")] == ["1:4:8", "4"]
    for wrong in ("", "0", "1:4", "8:4:1", "1:4:8:9", "-1", "1:x:8", "²"):
        with pytest.raises(UsageError):
            BatchRange.of(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "openvino"}, "tensorrt and tensorrt-rtx"),
        ({"precision": "int8"}, "float16, bfloat16, float32"),
        ({"batches": ()}, "at least one range"),
        ({"workspace": 0}, "0 bytes"),
        ({"capabilities": ("9.0",)}, "allowed are 7.5, 8.0"),
        ({"timing_cache": Path("times")}, "no timing cache"),
        ({"flavour": "tensorrt", "capabilities": ("8.9",)}, "for the GPU it runs on"),
    ],
)
def test_options_a_flavour_does_not_have(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**options)  # pyright: ignore


def test_a_missing_package_is_named_with_its_pip_line(
    half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_export.engine_options.find_spec", lambda name: None)
    for flavour, extra in (("tensorrt", "trt"), ("tensorrt-rtx", "rtx")):
        with pytest.raises(ResourceError, match=rf"pip install 'fr-deploy\[{extra}\]'"):
            build_engine(half, tmp_path / "x", EngineOptions(flavour=flavour))  # pyright: ignore


def test_the_share_of_multiplications_in_half(half: Path, single: Path, tmp_path: Path) -> None:
    assert (half_fraction(half), half_fraction(single)) == (1, 0)
    # Of [1, 8] @ [8, 24] in float16 and [1, 24] @ [24, 8] in float32, either has 192 multiply-adds; a [8, 8] more 64.
    weights = {
        "a": helper.make_tensor("a", TensorProto.FLOAT16, [8, 24], bytes(8 * 24 * 2), raw=True),
        "b": helper.make_tensor("b", TensorProto.FLOAT, [24, 8], bytes(24 * 8 * 4), raw=True),
        "c": helper.make_tensor("c", TensorProto.FLOAT, [8, 8], bytes(8 * 8 * 4), raw=True),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Cast", ["xa"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["wide", "b"], ["xab"]),
        helper.make_node("Gemm", ["xab", "c"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])
    made = helper.make_graph(nodes, "mixed", [x], [y], list(weights.values()))
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]),
        tmp_path / "mixed.onnx",
    )
    graph = read_graph(tmp_path / "mixed.onnx")
    assert graph.half == 192 / (192 + 192 + 64)
    assert graph.parameters == 8 * 24 * 2 + 24 * 8 * 4 + 8 * 8 * 4
    assert graph.inputs == {"x": (None, 8)}
    with pytest.raises(ModelError, match=r"43% of its multiplications in half.*--precision fp16"):
        build_engine(tmp_path / "mixed.onnx", tmp_path / "x", EngineOptions())


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no protobuf")
    for path in (tmp_path / "x.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(ModelError, match="cannot be read as ONNX"):
            read_graph(path)


def test_the_other_precision_is_refused(half: Path, single: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    with pytest.raises(
        ModelError, match=r"0% of its multiplications.*float16 is asked.*--precision fp16"
    ):
        build_engine(single, tmp_path / "x", EngineOptions())
    with pytest.raises(ModelError, match=r"100% of its.*float32 is asked.*--precision fp32"):
        build_engine(half, tmp_path / "x", EngineOptions(precision="float32"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("information", ["", "{}", '{"Layers": ["conv"]}', '{"Layers": []}'])
def test_an_inspector_of_another_form(information: str) -> None:
    with pytest.raises(ModelError, match="describes"):
        half_of_layers(information)


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module of a given source in the place of TensorRT's, here and in the build's process."""

    def pretend(module: str, source: str) -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        paths = [str(folder), str(TESTS), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return pretend


DEATHS = {
    "import os, sys; print('terminate called', file=sys.stderr, flush=True); os.abort()": (
        ModelError,
        r"crashed \(SIGABRT\) and wrote no engine\nterminate called",
    ),
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": (
        ResourceError,
        "was killed, as a process is that takes all memory",
    ),
    "import os; os._exit(3)": (ModelError, r"crashed \(exit code 3\)"),
    "raise ImportError('libnvinfer.so.11: cannot open')": (ModelError, "ImportError: libnvinfer"),
    "raise OSError(28, 'full')": (ResourceError, "the disk is full"),
}


@pytest.mark.parametrize("source", DEATHS)
def test_a_death_of_the_build_is_an_error_here(
    half: Path, tmp_path: Path, pretended: Callable[[str, str], None], source: str
) -> None:
    pretended("tensorrt_rtx", source)
    kind, message = DEATHS[source]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.engine").write_bytes(b"of before")
    with pytest.raises(kind, match=message):
        build_engine(half, tmp_path / "out" / "x.engine", EngineOptions())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.engine"]
    assert (tmp_path / "out" / "x.engine").read_bytes() == b"of before"


STAND_IN = (
    "import sys; from tensorrt_stand_in import StandIn; sys.modules[__name__] = StandIn({!r})"
)


@pytest.mark.parametrize("version", ["tensorrt-10.16.1.11", "tensorrt-11.4.0.106"])
def test_the_way_of_full_tensorrt(
    half: Path,
    tmp_path: Path,
    pretended: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    """Against stand-ins made of the listings of its interfaces: no engine was ever built by it here."""
    pretended("tensorrt", STAND_IN.format(version))
    monkeypatch.setattr(engine, "_gpu", lambda: ("NVIDIA-H100-sm90", ("9.0",)))
    options = EngineOptions(flavour="tensorrt", timing_cache=tmp_path / "times")
    built = build_engine(half, tmp_path / "x.engine", options)
    assert (tmp_path / "x.engine").read_bytes() == b"an engine"
    assert (built.version, built.capabilities) == (version.partition("-")[2], ("9.0",))
    assert built.half_layers == 0.5
    (times,) = (tmp_path / "times").iterdir()
    assert times.name == f"{built.version}-NVIDIA-H100-sm90.timing"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_full_tensorrt_wants_a_gpu(
    half: Path, tmp_path: Path, pretended: Callable[[str, str], None]
) -> None:
    pretended("tensorrt", "raise ImportError")
    with pytest.raises(ResourceError, match="choose the flavour tensorrt-rtx"):
        build_engine(half, tmp_path / "x", EngineOptions(flavour="tensorrt"))


def test_peak_memory_is_of_one_process_alone() -> None:
    """This one, with torch, has more than the other begins with."""
    code = (
        "from fr_export.engine_worker import peak_memory as p\n"
        "before = p(); block = b'x' * (1 << 28); print(before, p())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 1e8 < peak_memory()
    assert 0.95 < (after - before) / (1 << 28) < 1.05


def test_an_estimate(half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = read_graph(half)
    weights = 2 * (3 * 16 * 9 + 16 + 16 * 48 + 48 + 16 * 3 * 9 + 3) + 2 * 2 * 16
    # And what shapes and the norm's ones and zeros take.
    assert weights <= graph.parameters < weights + 1000
    output = tmp_path / "not" / "there" / "x.engine"
    one = estimate_engine(graph, output, EngineOptions())
    three = estimate_engine(graph, output, EngineOptions(batches=(BatchRange(1, 1, 1),) * 3))
    assert one.engine - one.parameters == (three.engine - three.parameters) / 3
    assert one.peak < three.peak < 1.2 * one.peak
    assert one.fits
    require_room(one)
    assert estimate_engine(graph, output, EngineOptions(flavour="tensorrt")).peak is None
    monkeypatch.setattr("fr_export.engine_estimate.free_memory", lambda: one.peak - 1)
    with pytest.raises(ResourceError, match=r"does not fit: \d\.\d MB of weights"):
        require_room(estimate_engine(graph, output, EngineOptions()))


def test_free_memory_is_what_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr("fr_export.engine_estimate._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("fr_export.engine_estimate._CGROUP", tmp_path)
    assert free_memory() == 3000 * 1024
    (tmp_path / "memory.current").write_text("1500000\n")
    for most, free in (("max", 3000 * 1024), ("2000000", 500_000), ("1000000", 0)):
        (tmp_path / "memory.max").write_text(most + "\n")
        assert free_memory() == free
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 9\ninactive_file 1000\nactive_file 200\n")
    assert free_memory() == 501_200
