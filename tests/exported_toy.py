"""A small exported directory, made for real: the toy graph's components as ONNX files, and their manifest."""

import hashlib
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fr_deploy.manifest import (
    BATCH,
    PARTS,
    Batches,
    Component,
    File,
    Gpu,
    Manifest,
    Parity,
    Tensor,
    parse_manifest,
    write_manifest,
)
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.torch_backend import TorchBackend
from fr_export.lowering import TRANSLATIONS
from fr_export.onnx import graph_hash

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


class _ToBytes(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return RestorationGraph.to_bytes(self, self.decoder(latent))  # reads nothing of self


def export_parts(graph: RestorationGraph, folder: Path) -> None:
    """A graph in float32, by component."""
    graph.use_kernels(False).eval()
    size = graph.preset.size
    x: Any = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    modules = (graph.encoder, graph.adapter, graph.unet, _ToBytes(graph.decoder).eval())
    components, taken = [], "faces"
    for name, module in zip(PARTS, modules, strict=True):
        given = "restored" if name == "decoder" else f"{name}_latent"
        torch.onnx.export(
            module,
            (x,),
            folder / f"{name}.onnx",
            dynamo=True,
            opset_version=20,
            input_names=[taken],
            output_names=[given],
            dynamic_shapes=({0: torch.export.Dim(BATCH, min=1, max=MOST)},),
            custom_translation_table=TRANSLATIONS,
            external_data=False,
            verbose=False,
        )
        made = module(x)
        components.append(_component(folder, name, (taken, x), (given, made)))
        taken, x = given, made
    write_manifest(folder, _manifest(graph, tuple(components)))


def _component(folder: Path, name: Any, taken: Any, given: Any) -> Component:
    path = f"{name}.onnx"
    return Component(
        name, (file_of(folder, path),), (_tensor(*taken),), (_tensor(*given),), 0.0, None
    )


def _tensor(name: str, x: torch.Tensor) -> Tensor:
    dtype: Any = str(x.dtype).removeprefix("torch.")
    return Tensor(name, dtype, (BATCH, *x.shape[1:]))


def file_of(folder: Path, path: str, role: Any = "onnx") -> File:
    data = (folder / path).read_bytes()
    return File(role, path, len(data), hashlib.sha256(data).hexdigest())


def _manifest(graph: RestorationGraph, components: tuple[Component, ...]) -> Manifest:
    return Manifest(
        schema=1,
        fr_deploy="0.1.0",
        commit="",
        family="lafr",
        preset=graph.preset.name,
        size=graph.preset.size,
        weights="0" * 64,
        loras=(),
        graph=graph_hash(graph),
        format="onnx",
        precision="fp32",
        components=components,
        batches=(Batches(1, 4, MOST),),
        versions={"torch": torch.__version__},
        gpu=None,
        kernels={},
        parity=Parity(1, (), None, None, 1.0, None),
        verified="onnx",
    )


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
