"""A small exported directory, altered, and the pictures to hold it to."""

import hashlib
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fr_deploy.manifest import File, Gpu, Manifest, parse_manifest, write_manifest
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.torch_backend import TorchBackend

TOY = PRESETS["lafr-toy"]
MOST = 8


def toy() -> RestorationGraph:
    torch.manual_seed(0)
    return RestorationGraph.of(LafrModel(TOY).eval().requires_grad_(False)).eval()


@cache
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight faces, and what torch makes of them: uint8 [8, S, S, 3] each, not to be written to."""
    faces = random_pictures(TOY.size, MOST)
    return faces, TorchBackend(toy()).run(faces)


def file_of(folder: Path, path: str, role: Any = "onnx") -> File:
    data = (folder / path).read_bytes()
    return File(role, path, len(data), hashlib.sha256(data).hexdigest())


def changed(folder: Path, **changes: Any) -> Manifest:
    """Write the directory's manifest again with other fields."""
    manifest = replace(parse_manifest((folder / "manifest.json").read_bytes()), **changes)
    write_manifest(folder, manifest)
    return manifest


def as_engines(folder: Path, form: Any, version: str, gpu: Gpu, **changes: Any) -> Manifest:
    """The directory as one of engines, each engine a copy of its ONNX file: what the stand-in of TensorRT loads."""
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    components = []
    for component in manifest.components:
        path = f"{component.name}.engine"
        shutil.copy(folder / f"{component.name}.onnx", folder / path)
        files = (file_of(folder, f"{component.name}.onnx"), file_of(folder, path, "engine"))
        components.append(replace(component, files=files))
    values = {"verified": "engine", "versions": {form: version}, "gpu": gpu} | changes
    return changed(folder, format=form, components=tuple(components), **values)
