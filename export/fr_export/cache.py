"""Exports of graphs, kept on disk by what they are made of."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from fr_deploy.manifest import ComponentName
from fr_deploy.models import attention, autoencoder, layers, parts, restorer, unet
from fr_deploy.models.restorer import RestorationGraph
from fr_export import onnx
from fr_export.onnx import export_onnx, graph_metadata
from fr_kernels.cache import cache_dir

_HERE = Path(__file__).parent
_SOURCES = (
    str(onnx.__file__),
    _HERE / "lowering.py",
    *(str(module.__file__) for module in (attention, autoencoder, layers, parts, restorer, unet)),
)
"""The code that decides what an export holds."""


def export_key(
    graph: RestorationGraph, part: ComponentName = "whole", opset: int | None = None
) -> str:
    """A digest of all that an export is made of: weights, versions, this package, the graph's code."""
    metadata = graph_metadata(graph, opset, part)
    made_by = hashlib.sha256(f"{metadata} {version('onnx')}".encode())
    for source in _SOURCES:
        made_by.update(Path(source).read_bytes())
    return made_by.hexdigest()


def cached_onnx(
    graph: RestorationGraph, folder: Path | None = None, *, opset: int | None = None
) -> Path:
    """A graph's .onnx file: from the cache folder, or exported and put there.

    Its name holds `export_key`, so nothing in the folder is ever out of date.

    Args:
        graph: as `export_onnx`.
        folder: `cache_folder()` by default.
        opset: as `export_onnx`.
    """
    name = f"{graph.preset.name}-{export_key(graph, opset=opset)[:32]}.onnx"
    path = (folder or cache_folder()) / name
    if not path.is_file():
        export_onnx(graph, path, opset=opset)
    return path


def cache_folder() -> Path:
    """`$FR_DEPLOY_CACHE/onnx`, else `~/.cache/fr-deploy/onnx`."""
    return cache_dir() / "onnx"
