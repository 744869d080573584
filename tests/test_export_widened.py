"""A bfloat16 graph as onnxruntime runs it, beside torch's own bfloat16."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from export_cases import TINY
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.layers import TransposedUpsample
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_export.departure import first_departure
from fr_export.onnx import export_onnx, phased
from fr_export.session import run_file, run_files
from fr_export.verify import measure, require
from fr_export.widened import runnable

NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def tiny() -> RestorationGraph:
    torch.manual_seed(0)
    return RestorationGraph.of(LafrModel(TINY).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "whole.onnx"
    export_onnx(tiny().bfloat16(), path)
    return path


def test_every_operator_rounds_as_torch_does(tmp_path: Path) -> None:
    """A product, a sum with a constant and a way out to float32, each of one bfloat16 rounding."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64)
    constants = [
        helper.make_tensor(
            name, NARROW, t.shape, t.bfloat16().view(torch.uint8).numpy().tobytes(), raw=True
        )
        for name, t in (("w", weight), ("b", bias))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=NARROW),
        helper.make_node("MatMul", ["narrow", "w"], ["product"]),
        helper.make_node("Constant", [], ["c"], value=constants[1]),
        helper.make_node("Add", ["product", "c"], ["sum"]),
        helper.make_node("Mul", ["sum", "sum"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=WIDE),
    ]
    ends = [helper.make_tensor_value_info(name, WIDE, ["batch", 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants[:1])
    for name in ("narrow", "product", "c", "sum", "square"):
        graph.value_info.append(helper.make_tensor_value_info(name, NARROW, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|find an implementation"):
        ort.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    product = (x.bfloat16().double() @ weight.bfloat16().double()).float().bfloat16()
    wanted = ((product + bias.bfloat16()) ** 2).float().numpy()
    for plain in (True, False):
        made = run_file(tmp_path / "x.onnx", {"x": x.numpy()}, ["y"], plain=plain)["y"]
        # A product's float32 sum may lie on the other side of a rounding tie than its float64 sum.
        assert np.mean(made == wanted) > 0.99
        assert np.allclose(made, wanted, rtol=2**-5, atol=1e-2)


def test_what_is_not_bfloat16_stays_what_it_is(tmp_path: Path) -> None:
    export_onnx(tiny(), tmp_path / "x.onnx")
    with runnable(tmp_path / "x.onnx") as path:
        assert path == tmp_path / "x.onnx"


def test_the_copy_is_gone_afterwards(narrow: Path) -> None:
    with runnable(narrow) as path:
        assert path != narrow
        elements = {
            t.data_type for t in onnx.load(path, load_external_data=False).graph.initializer
        }
        assert NARROW not in elements
    assert not path.parent.exists()


def test_the_graph_is_as_near_as_torchs_own(narrow: Path) -> None:
    graph, faces = tiny(), random_pictures(TINY.size, 4)
    parity = measure(graph, faces, run_files({"whole": narrow}, faces), {"whole": None})
    require(parity, "bf16")
    typed = tiny().bfloat16()
    made = typed.stages(faces)
    forced = graph.to_bytes(graph.stages(faces, made.codes).picture)
    eager = agree(typed.to_bytes(made.picture), forced).psnr
    assert parity.psnr_forced is not None
    assert abs(parity.psnr_forced - eager) < 3
    eager_codes = float((made.codes == graph.stages(faces).codes).double().mean())
    assert abs(parity.codes - eager_codes) < 0.03


def test_a_departure_has_the_names_of_the_file(narrow: Path, tmp_path: Path) -> None:
    model = onnx.load(narrow)
    (tensor,) = (t for t in model.graph.initializer if t.name == "unet.conv_in.weight")
    raw = np.frombuffer(tensor.raw_data, np.uint16).copy()
    raw[5] ^= 1 << 14
    tensor.raw_data = raw.tobytes()
    onnx.save(model, tmp_path / "x.onnx")
    given = {"faces": random_pictures(TINY.size, 1).numpy()}
    assert first_departure(narrow, narrow, given, 0.0) is None
    found = first_departure(tmp_path / "x.onnx", narrow, given, 0.0)
    assert found is not None
    assert found.path == tmp_path / "x.onnx"
    assert found.operator == "Conv"
    assert found.weights == ("unet.conv_in.weight",)
    assert "/exact" not in found.tensor


def test_without_transposed_convolutions_the_graph_computes_the_same() -> None:
    """What a bfloat16 file holds in their place, since TensorRT-RTX builds none."""
    torch.manual_seed(0)
    toy = PRESETS["lafr-toy"]
    graph = RestorationGraph.of(LafrModel(toy).eval().requires_grad_(False)).double()
    faces = random_pictures(toy.size, 2)
    wanted = graph.picture(faces)
    layers = list(graph.unet.upsamplers)
    assert layers
    with phased(graph):
        assert not any(isinstance(m, TransposedUpsample) for m in graph.modules())
        assert torch.allclose(graph.picture(faces), wanted, rtol=0, atol=1e-9)
    assert list(graph.unet.upsamplers) == layers
