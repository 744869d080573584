"""Where two files begin to differ, on files small enough to see it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fr_export import departure
from fr_export.departure import first_departure

X = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
WEIGHTS = {n: np.random.default_rng(i).normal(size=(6, 6)) for i, n in enumerate(("a", "b", "c"))}


def write(path: Path, half: bool = False, **changed: np.ndarray) -> Path:
    """Three products, each behind a Relu; in half precision with casts between."""
    wide, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = [
        numpy_helper.from_array(w.astype(dtype), name) for name, w in (WEIGHTS | changed).items()
    ]
    nodes, before = [], "x"
    for name in WEIGHTS:
        nodes += [
            helper.make_node("MatMul", [before, name], [f"x{name}"]),
            helper.make_node("Relu", [f"x{name}"], [f"relu_{name}"]),
        ]
        before = f"relu_{name}"
        if half:
            nodes += [
                helper.make_node("Cast", [before], [f"val_{name}"], to=TensorProto.FLOAT),
                helper.make_node("Cast", [f"val_{name}"], [f"{before}_back"], to=wide),
            ]
            before += "_back"
    ends = [helper.make_tensor_value_info(n, wide, ["batch", 6]) for n in ("x", before)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


@pytest.mark.parametrize("held", [departure.HELD_BYTES, 1])
def test_one_value_of_one_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(departure, "HELD_BYTES", held)
    right = write(tmp_path / "right.onnx")
    assert first_departure(write(tmp_path / "same.onnx"), right, {"x": X}, 0.0) is None
    weight = WEIGHTS["b"].copy()
    weight[:, 2] *= 1.01
    found = first_departure(write(tmp_path / "ours.onnx", b=weight), right, {"x": X}, 0.0)
    assert found is not None
    assert (found.tensor, found.operator, found.weights) == ("xb", "MatMul", ("b",))
    assert 0 < found.error < 0.02
    assert {p.name for p in tmp_path.iterdir()} == {"right.onnx", "same.onnx", "ours.onnx"}


def test_half_precision_departs_where_more_than_rounding_does(tmp_path: Path) -> None:
    right = write(tmp_path / "right.onnx")
    assert first_departure(write(tmp_path / "half.onnx", half=True), right, {"x": X}, 0.01) is None
    changed = write(tmp_path / "ours.onnx", half=True, c=WEIGHTS["c"] * 1.05)
    found = first_departure(changed, right, {"x": X}, 0.01)
    assert found is not None
    assert (found.tensor, found.weights) == ("xc", ("c",))
    assert 0.03 < found.error < 0.07


def test_not_a_number_departs(tmp_path: Path) -> None:
    right = write(tmp_path / "right.onnx")
    changed = write(tmp_path / "ours.onnx", a=np.full((6, 6), np.nan))
    found = first_departure(changed, right, {"x": X}, 0.5)
    assert found is not None
    assert found.tensor == "xa"
