"""Engines built for real, by TensorRT-RTX, on any machine. None of them is run: that takes a GPU."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from engine_cases import export
from fr_deploy.bundle import load_graph
from fr_deploy.errors import ModelError
from fr_export import engine_calls
from fr_export.engine import build_engine
from fr_export.engine_calls import Job, RefusedError
from fr_export.engine_estimate import estimate_engine
from fr_export.engine_graph import read_graph
from fr_export.engine_options import BatchRange, EngineOptions, Precision
from fr_export.engine_process import Step
from fr_export.onnx import export_onnx

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
PRECISIONS: dict[Precision, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capabilities", [(), ("8.9", "12.0")])
def test_bytes_in_bytes_out(
    precision: Precision, capabilities: tuple[str, ...], tmp_path: Path
) -> None:
    file = export(tmp_path / "x.onnx", PRECISIONS[precision])
    steps: list[Step] = []
    options = EngineOptions(precision=precision, capabilities=capabilities, workspace=1 << 30)
    built = build_engine(file, tmp_path / "x.engine", options, progress=steps.append)
    data = (tmp_path / "x.engine").read_bytes()
    assert (built.bytes, built.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (built.version, built.capabilities) == (trt.__version__, capabilities)
    assert built.half_layers is None
    assert built.layers > 10
    assert 0 < built.peak_bytes < estimate_engine(read_graph(file), tmp_path / "x", options).peak
    first, last = steps[0], steps[-1]
    assert (first.done, first.parent) == (0, None)
    assert (last.phase, last.done) == (first.phase, last.steps)
    assert 0 <= first.seconds < last.seconds < built.seconds
    assert {path.name for path in tmp_path.iterdir()} == {"x.onnx", "x.engine"}


def test_a_caller_that_gives_up_ends_the_build(tmp_path: Path) -> None:
    file = export(tmp_path / "x.onnx", torch.float16)

    def give_up(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(file, tmp_path / "x.engine", EngineOptions(), progress=give_up)
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert all("engine_worker" not in Path(f"/proc/{c}/cmdline").read_text() for c in children)


def test_profiles_share_a_convolution(tmp_path: Path) -> None:
    """Three static batches beside one: 2.4 million weights, once."""
    weight = torch.randn(512, 512, 3, 3).half().numpy()
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", 512, 16, 16])
        for name in ("x", "y")
    ]
    weights = [onnx.numpy_helper.from_array(weight, "w")]
    model = helper.make_model(
        helper.make_graph([node], "wide", sides[:1], sides[1:], weights),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "x.onnx")

    def size(*batches: str) -> int:
        options = EngineOptions(batches=tuple(map(BatchRange.of, batches)))
        return build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", options).bytes

    assert weight.nbytes < size("1:4:8") < size("1", "4", "8") < 1.5 * weight.nbytes


def test_a_fixed_batch(tmp_path: Path) -> None:
    file = export(tmp_path / "x.onnx", torch.float16, dynamic=False)
    built = build_engine(file, tmp_path / "x.engine", EngineOptions(batches=(BatchRange.of("2"),)))
    assert built.bytes > 0
    with pytest.raises(ModelError, match=r"fixed batch \{2\}, and 1:4:8 is asked"):
        build_engine(file, tmp_path / "y.engine", EngineOptions())


def attend(path: Path) -> Job:
    """Attention as one operator, with heads of 8 in float32: no fused kernel has that."""
    export(path, torch.float32, opset=23, ours=False)
    assert "Attention" in read_graph(path).operators
    return Job("tensorrt_rtx", str(path), (), ((1, 4, 8),), ("8.9",), None, None, "", inspect=False)


def test_attention_without_a_fused_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = attend(tmp_path / "x.onnx")
    built = engine_calls.build(trt, job, lambda event: None, io.BytesIO())
    assert built["bytes"] > 0
    log: list[Any] = []
    monkeypatch.setattr(engine_calls, "_let_attention_decompose", lambda *given: None)
    with pytest.raises(RefusedError, match="the build failed"):
        engine_calls.build(trt, job, log.append, io.BytesIO())
    assert "Attention operation was not supported" in " ".join(e.get("text", "") for e in log)


def one_node(path: Path, kind: str, outputs: list[int], **attributes: Any) -> Path:
    """A half-precision product, and a node of its result."""
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [8, 8], bytes(128), raw=True)
    product = helper.make_node("MatMul", ["x", "w"], ["xw"])
    named = [(f"y{i}", element) for i, element in enumerate(outputs)]
    node = helper.make_node(kind, ["xw"], [name for name, _ in named], name="suspect", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 8])
    ys = [helper.make_tensor_value_info(name, element, None) for name, element in named]
    made = helper.make_graph([product, node], "one", [x], ys, [weight])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def test_an_operator_it_has_not_is_named(tmp_path: Path) -> None:
    file = one_node(tmp_path / "x.onnx", "Unique", [TensorProto.FLOAT16], sorted=1)
    with pytest.raises(
        ModelError, match=r"x\.onnx: node 1 'suspect' \(Unique\)(.|\n)*it has no operator Unique"
    ):
        build_engine(file, tmp_path / "x.engine", EngineOptions())
    assert not (tmp_path / "x.engine").exists()


def test_bytes_are_taken_from_a_cast_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["xt"], perm=[1, 0], name="turned"),
        helper.make_node("Cast", ["xt"], ["wide"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["wide", "w"], ["y"]),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [8, 8], bytes(128), raw=True)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [8, 8])
    made = helper.make_graph(nodes, "late", [x], [y], [weight])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ModelError, match=r"node 0 'turned' \(Transpose\)"):
        build_engine(
            tmp_path / "x.onnx", tmp_path / "x.engine", EngineOptions(batches=(BatchRange.of("8"),))
        )


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_lafr_mini(tmp_path: Path, precision: Precision) -> None:
    export_onnx(load_graph("lafr-mini").to(PRECISIONS[precision]), tmp_path / "x.onnx")
    graph, options = read_graph(tmp_path / "x.onnx"), EngineOptions(precision=precision)
    built = build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", options)
    said = estimate_engine(graph, tmp_path / "x.engine", options)
    assert 0.9 < built.bytes / said.engine < 1.1
    assert said.peak is not None
    assert 0.5 < built.peak_bytes / said.peak < 1
    assert (built.half > 0.95) == (precision == "float16")
