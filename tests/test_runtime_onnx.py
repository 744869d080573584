"""The onnxruntime backend, on a small file of its own making: `restored` is `faces` with all bits turned."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fr_deploy.errors import ModelError, ResourceError, UsageError
from fr_deploy.runtime.metadata import GraphMetadata
from fr_deploy.runtime.onnx_backend import OnnxBackend

SIZE = 5
METADATA = GraphMetadata("0.1.0", "lafr-toy", "float32", "whole", "abc", "20", "2.13", "0.7.2")


def write(path: Path, props: dict[str, str], name: str = "faces", size: int = SIZE) -> Path:
    shape = ["batch", size, size, 3]
    sides = [helper.make_tensor_value_info(n, TensorProto.UINT8, shape) for n in (name, "restored")]
    node = helper.make_node("BitwiseNot", [name], ["restored"])
    graph = helper.make_graph([node], "turned", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "turned.onnx", METADATA.to_props())


def faces(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_it_says_what_it_runs(file: Path) -> None:
    with OnnxBackend(file) as backend:
        said = backend.name, backend.device, backend.size, backend.preset, backend.metadata
    assert said == ("onnxruntime", "cpu", SIZE, "lafr-toy", METADATA)


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("batch", [1, 2, 65])
def test_any_batch(file: Path, batch: int, threads: int | None) -> None:
    pixels = faces(batch, SIZE, SIZE, 3)
    before = pixels.clone()
    restored = OnnxBackend(file, threads=threads).run(pixels)
    assert torch.equal(restored, ~before)
    assert torch.equal(pixels, before)


def test_any_strides(file: Path) -> None:
    pixels = faces(2, 3, SIZE, SIZE).permute(0, 2, 3, 1)[:, ::1].flip(1)
    assert torch.equal(OnnxBackend(file).run(pixels), ~pixels)


@pytest.mark.parametrize("shape", [(0, SIZE, SIZE, 3), (1, SIZE, SIZE + 1, 3), (SIZE, SIZE, 3)])
def test_another_shape_is_refused(file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 \[B, 5, 5, 3\] with B at least 1"):
        OnnxBackend(file).run(faces(*shape))


def test_another_dtype_or_device_is_refused(file: Path) -> None:
    backend = OnnxBackend(file)
    with pytest.raises(UsageError, match=r"torch.float32 \[1, 5, 5, 3\]"):
        backend.run(faces(1, SIZE, SIZE, 3).float())
    with pytest.raises(UsageError, match=r"on meta; call with faces.cpu\(\)"):
        backend.run(faces(1, SIZE, SIZE, 3).to("meta"))


def test_a_closed_backend_says_so(file: Path) -> None:
    backend = OnnxBackend(file)
    backend.close()
    backend.close()
    with pytest.raises(UsageError, match="the backend is closed"):
        backend.run(faces(1, SIZE, SIZE, 3))


@pytest.mark.parametrize("field", METADATA.to_props())
def test_a_foreign_file_is_refused_by_the_field_it_lacks(tmp_path: Path, field: str) -> None:
    props = {name: text for name, text in METADATA.to_props().items() if name != field}
    with pytest.raises(ModelError, match=f"no metadata field '{field}'.*fr-deploy export MODEL"):
        OnnxBackend(write(tmp_path / "foreign.onnx", props))


def test_another_input_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.onnx", METADATA.to_props(), name="pixels")
    with pytest.raises(ModelError, match=r"'pixels'.*expected one input 'faces'"):
        OnnxBackend(path)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ModelError, match=r"none.onnx is missing; make it with"):
        OnnxBackend(tmp_path / "none.onnx")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"turned.onnx cannot be loaded: "):
        OnnxBackend(file)


def test_a_device_that_is_not_there_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match=r"only CPUExecutionProvider;.*install onnxruntime-gpu"):
        OnnxBackend(file, device="cuda")
    with pytest.raises(UsageError, match="device is 'tpu'; allowed are cpu, cuda"):
        OnnxBackend(file, device="tpu")


def test_a_device_that_does_not_start_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime falls back to the CPU by itself; the session here is one that has."""
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: present)
    with pytest.raises(ResourceError, match="CUDAExecutionProvider did not start"):
        OnnxBackend(file, device="cuda")
