"""Engines beside the float32 graph, where there is the GPU they are for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fr_deploy.errors import ModelError, ResourceError
from fr_deploy.manifest import FILE, ComponentName, Manifest, write_manifest
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.exported import Exported
from fr_deploy.runtime.select import Request
from fr_deploy.runtime.tensorrt_backend import TensorRtBackend
from fr_export.verify import measure, report, require


def verify_engines(
    folder: Path,
    manifest: Manifest,
    graph: RestorationGraph,
    faces: Tensor,
    say: Callable[[str], None],
) -> Manifest:
    """Run the engines of a directory whose ONNX files were verified, and hold them to the float32 graph.

    Args:
        folder: with its manifest, which gets the figures and `verified: engine`.
        manifest: of the folder; without engines it comes back as it is.
        graph: in float32.
        faces: as `fixed_faces` returns them.
        say: hears the figures, or why nothing here runs the engines.

    Returns:
        The manifest in the folder.

    Raises:
        ModelError: the engines compute something else; the manifest is removed then.
    """
    if manifest.gpu is None:
        return manifest
    try:
        values = _values(folder, faces)
    except (ModelError, ResourceError) as error:
        say(f"the engines were not run, only their ONNX files: {error}")
        return manifest
    names: dict[ComponentName, None] = {component.name: None for component in manifest.components}
    parity = measure(graph, faces, values, names)
    say("the engines themselves:")
    for line in report(parity, manifest.precision):
        say(line)
    try:
        require(parity, manifest.precision)
    except ModelError:
        (folder / FILE).unlink(missing_ok=True)
        raise
    verified = replace(manifest, parity=parity, verified="engine")
    write_manifest(folder, verified)
    return verified


def _values(folder: Path, faces: Tensor) -> dict[str, Tensor]:
    backend, _ = Exported(folder, allow_unverified=True).load(Request())
    assert isinstance(backend, TensorRtBackend)
    try:
        some = [backend.outputs(few) for few in faces.split(backend.limit)]
    finally:
        backend.close()
    return {name: torch.cat([made[name] for made in some]) for name in some[0]}
