"""The exported graph in onnxruntime computes what the graph computes, in standard operators alone."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, shape_inference

import fr_export.onnx
from fr_deploy import __version__
from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.manifest import Parity
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.layers import Layer
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.onnx_backend import OnnxBackend
from fr_export import cache
from fr_export.onnx import export_onnx, graph_hash
from fr_export.session import run_files
from fr_export.verify import measure, report, require

TOY = PRESETS["lafr-toy"]


def toy() -> RestorationGraph:
    torch.manual_seed(0)
    return RestorationGraph.of(LafrModel(TOY).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "toy.onnx"
    graph = toy().use_kernels(True)
    export_onnx(graph, path)
    assert all(m.kernels for m in graph.modules() if isinstance(m, Layer)), "comes back as it was"
    return path


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "half.onnx"
    export_onnx(toy().half(), path)
    return path


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_float32_gives_the_bytes_of_torch_but_for_rounding_ties(file: Path, batch: int) -> None:
    torch.manual_seed(1)
    faces = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8)
    with OnnxBackend(file) as backend:
        restored = backend.run(faces)
    difference = (restored.int() - toy()(faces).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.001


@pytest.mark.slow
def test_float16_is_40_decibels_from_float32(half: Path) -> None:
    faces, graph = random_pictures(64, 3), toy()
    with OnnxBackend(half) as backend:
        assert backend.metadata.dtype == "float16"
    values = run_files({"whole": half}, faces)
    parity = measure(graph, faces, values, {"whole": None})
    require(parity, "fp16")
    differing = values["restored"] != graph.to_bytes(graph.stages(faces, values["codes"]).picture)
    assert 0 < differing.double().mean() < 0.2


def nodes(path: Path, kind: str) -> Iterator[onnx.NodeProto]:
    yield from (node for node in onnx.load(path).graph.node if node.op_type == kind)


def types(path: Path) -> dict[str, int]:
    """Element type by value."""
    graph = shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    inferred = {value.name: value.type.tensor_type.elem_type for value in values}
    return inferred | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.slow
def test_the_float16_file_keeps_its_float32_islands(half: Path) -> None:
    of = types(half)
    for kind in ("ArgMin", "InstanceNormalization", "Softmax", "Sigmoid"):
        found = [of[node.input[0]] for node in nodes(half, kind)]
        assert found
        assert set(found) == {TensorProto.FLOAT}, kind
    (argmin,) = nodes(half, "ArgMin")
    (distances,) = (node for node in nodes(half, "Gemm") if node.output[0] == argmin.input[0])
    assert {of[name] for name in distances.input} == {TensorProto.FLOAT}
    # The one-step formula: the UNet's last convolution and the residual's, summed.
    wide = [node for node in nodes(half, "Conv") if of[node.output[0]] == TensorProto.FLOAT]
    assert len(wide) == 2
    assert all(of[name] == TensorProto.FLOAT for node in wide for name in node.input)
    sums = [set(node.input) for node in nodes(half, "Add")]
    assert {node.output[0] for node in wide} in sums
    assert {of[node.output[0]] for node in nodes(half, "Conv")} == {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
    }
    assert {of[node.output[0]] for node in nodes(half, "LayerNormalization")} == {
        TensorProto.FLOAT16  # stash_type, left at 1: its statistics are float32
    }


@pytest.mark.parametrize("name", ["file", pytest.param("half", marks=pytest.mark.slow)])
def test_one_file_of_standard_operators(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    (faces,), (restored, codes) = model.graph.input, model.graph.output
    assert codes.name == "codes"
    for side, title in ((faces, "faces"), (restored, "restored")):
        dims = [d.dim_param or d.dim_value for d in side.type.tensor_type.shape.dim]
        assert (side.name, dims) == (title, ["batch", 64, 64, 3])
        assert side.type.tensor_type.elem_type == TensorProto.UINT8


def test_the_file_says_what_it_is_and_nothing_of_this_machine(file: Path) -> None:
    model = onnx.load(file)
    assert (model.producer_name, model.producer_version) == ("fr-deploy", __version__)
    assert {p.key.removeprefix("fr_deploy."): p.value for p in model.metadata_props} == {
        "version": __version__,
        "preset": "lafr-toy",
        "dtype": "float32",
        "part": "whole",
        "graph": graph_hash(toy()),
        "opset": "20",
        "torch": torch.__version__,
        "onnxscript": fr_export.onnx.version("onnxscript"),
    }
    data = file.read_bytes()
    assert b".py" not in data
    assert b"pkg." not in data


@pytest.mark.slow
def test_the_cache_holds_the_same_bytes_and_is_asked_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    graph = toy().to(memory_format=torch.channels_last)
    cached = cache.cached_onnx(graph)
    assert cached.parent == tmp_path / "onnx"
    assert cached.read_bytes() == file.read_bytes()
    monkeypatch.setattr(cache, "export_onnx", None)
    assert cache.cached_onnx(graph) == cached
    with torch.no_grad():
        graph.decoder.conv_out.bias[0] += 1
    with pytest.raises(TypeError, match="NoneType"):
        cache.cached_onnx(graph)


def test_large_weights_lie_beside_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fr_export.onnx, "EMBEDDED_BYTES", 1000)
    monkeypatch.setattr(fr_export.onnx, "_translated", lambda *_: onnx_ir.load(file))
    path = tmp_path / "new" / "large.onnx"
    path.parent.mkdir()
    (path.parent / "large.onnx-0123.data").write_bytes(b"of an older export")
    export_onnx(toy(), path)
    data = f"large.onnx-{graph_hash(toy())[:16]}.data"
    assert {child.name for child in path.parent.iterdir()} == {"large.onnx", data}
    assert path.stat().st_size < file.stat().st_size / 4
    faces = random_pictures(64, 1)
    assert torch.equal(OnnxBackend(path).run(faces), OnnxBackend(file).run(faces))


def test_a_hash_is_of_weights_and_preset_not_of_their_place() -> None:
    graph = toy()
    first = graph_hash(graph)
    assert graph_hash(graph.to(memory_format=torch.channels_last).use_kernels(True)) == first
    with torch.no_grad():
        graph.adapter.codebook[3, 2] += 1e-3
    assert graph_hash(graph) != first
    assert graph_hash(toy().half()) != first


def test_what_has_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="opset is 19; allowed in float32 are 20 to 24"):
        export_onnx(toy(), tmp_path / "x.onnx", opset=19)
    with pytest.raises(UsageError, match="opset is 21; allowed in bfloat16 are 22 to 24"):
        export_onnx(toy().bfloat16(), tmp_path / "x.onnx", opset=21)
    with pytest.raises(UsageError, match="are float64; allowed are float32, float16, bfloat16"):
        export_onnx(toy().double(), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_onnxscript_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fr_export.onnx, "version", missing)
    with pytest.raises(ResourceError, match=r"pip install 'onnxscript>=") as caught:
        export_onnx(toy(), tmp_path / "x.onnx")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert str(caught.value).split("'")[1] in project["dependencies"]


def test_an_export_that_computes_something_else_is_refused() -> None:
    graph, faces = toy(), random_pictures(64, 3)
    made = [graph.stages(face) for face in faces.split(1)]
    values = {
        "restored": torch.cat([graph.to_bytes(stages.picture) for stages in made]),
        "codes": torch.cat([stages.codes for stages in made]),
    }

    def off(by: int, codes: int = 0) -> Parity:
        """Every second row is off by `by`, and of the first codes so many are."""
        restored, taken = values["restored"].clone(), values["codes"].clone()
        restored[:, ::2] ^= by
        taken.flatten()[:codes] ^= 1
        return measure(graph, faces, {"restored": restored, "codes": taken}, {"whole": None})

    same = off(0)
    require(same, "fp32")
    assert (same.psnr_forced, same.psnr, same.codes) == (None, None, 1.0)
    assert same.identity is not None
    assert same.identity < 1e-5, "an arc cosine of 1 less its rounding"
    assert list(report(same, "fp32"))[1].startswith(
        "pictures of 3 faces: not a byte apart with codes"
    )
    assert same.outputs[0].relative == 0
    slightly = off(1)
    assert slightly.psnr == slightly.psnr_forced == pytest.approx(51.14, abs=0.005)
    assert slightly.outputs[0].largest == 1
    require(slightly, "fp16")
    with pytest.raises(ModelError, match=r"51\.1 dB with.*in fp32 are 60 dB and 99.9%.*passed: 51"):
        require(slightly, "fp32")
    for precision in ("fp16", "bf16"):
        with pytest.raises(ModelError, match=f"required in {precision} are 40 dB"):
            require(off(16), precision)
    flipped = off(0, round(0.005 * values["codes"].numel()))
    assert flipped.codes == pytest.approx(0.995, abs=0.001)
    assert flipped.psnr is None, "the pictures are those of the graph's own codes"
