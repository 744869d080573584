"""A directory in the form of an export, of a few bytes a file: for all that is refused before a file is loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from exported_toy import file_of
from fr_deploy.manifest import (
    PARTS,
    Batches,
    Component,
    Gpu,
    Lora,
    Manifest,
    OutputParity,
    Parity,
    Tensor,
    write_manifest,
)
from fr_deploy.manifest_check import Here

VERSION = "1.7.1.116"
HERE = Here({"tensorrt-rtx": VERSION}, "NVIDIA GeForce RTX 4090", "8.9", "580.65.06")
FACES = ("uint8", ("batch", 64, 64, 3))
LATENT = ("float16", ("batch", 4, 16, 16))
CODES = ("int32", ("batch", 256))


def directory(folder: Path, form: Any = "tensorrt-rtx", **changes: Any) -> Manifest:
    """Write a directory; `changes` are fields of its manifest."""
    folder.mkdir(exist_ok=True)
    role = "onnx" if form == "onnx" else "engine"
    components = []
    for name in PARTS:
        path = f"{name}.{role}"
        (folder / path).write_bytes(f"these are the bytes of {name}".encode())
        taken = Tensor("faces", *FACES) if name == "encoder" else Tensor("latent", *LATENT)
        given = Tensor("restored", *FACES) if name == "decoder" else Tensor("latent", *LATENT)
        codes = (Tensor("codes", *CODES),) if name == "adapter" else ()
        file = file_of(folder, path, role)
        components.append(Component(name, (file,), (taken,), (given, *codes), 0.98, None))
    gpu = None if form == "onnx" else Gpu(None, ("8.9", "12.0"), "580.65")
    values: dict[str, Any] = {
        "schema": 1,
        "fr_deploy": "0.1.0",
        "commit": "0123456789ab",
        "family": "lafr",
        "preset": "lafr-toy",
        "size": 64,
        "weights": "1" * 64,
        "loras": (Lora("style.safetensors", "2" * 64, 0.6),),
        "graph": "3" * 64,
        "format": form,
        "precision": "fp16",
        "components": tuple(components),
        "batches": (Batches(1, 4, 8),),
        "versions": {"torch": "2.13.0", "onnx": "1.23.2", form: VERSION},
        "gpu": gpu,
        "kernels": {},
        "parity": Parity(
            4,
            (OutputParity("encoder", "latent", 0.9999, 0.01, 0.002),),
            52.1,
            None,
            0.995,
            1.5,
        ),
        "verified": "onnx" if form == "onnx" else "engine",
    }
    manifest = Manifest(**values | changes)
    write_manifest(folder, manifest)
    return manifest


def with_tensor(manifest: Manifest, at: int, side: str, tensor: Tensor) -> tuple[Component, ...]:
    """The components, of which one takes or gives another tensor."""
    components = list(manifest.components)
    components[at] = replace(components[at], **{side: (tensor,)})
    return tuple(components)
