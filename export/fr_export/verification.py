"""An exported directory held to its model again: what `fr-deploy verify` does."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fr_deploy.bundle import EMBEDDED
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.manifest import (
    FILE,
    ComponentName,
    Parity,
    Precision,
    parse_manifest,
    write_manifest,
)
from fr_deploy.models.lora import LoraFile
from fr_deploy.models.parts import ENDS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.metadata import GraphMetadata
from fr_export.departure import Departure, first_departure
from fr_export.onnx import export_onnx, graph_hash, graph_metadata
from fr_export.options import DTYPES
from fr_export.run_engines import verify_engines
from fr_export.session import Files, exported_files, metadata_of, run_files
from fr_export.state import file_sha256
from fr_export.subject import Source, subject_of
from fr_export.verify import FLOORS, fixed_faces, measure, report, require

Say = Callable[[str], None]


def verify_directory(
    folder: Path,
    source: Source | None = None,
    *,
    loras: Sequence[LoraFile] = (),
    photos: Path | None = None,
    bisect: bool = False,
    say: Say = lambda line: None,
) -> Parity:
    """Hold the ONNX files of an exported directory to the model they were made from.

    Args:
        folder: with or without a manifest.
        source, loras: what it was made from; by default the embedded bundle of its preset.
        photos: a folder of photos whose faces are compared, too.
        bisect: look for the first tensor that departs, whatever the figures say.
        say: hears the figures, and where a file departs.

    Returns:
        The figures. A manifest that is there gets them.

    Raises:
        UsageError: no model is named, and none of that preset is embedded.
        ModelError: another model or LoRAs; files that are missing, damaged or altered; figures below their floors. The
            manifest is removed then, if it was the files' fault.
    """
    files = exported_files(folder)
    said: dict[ComponentName, GraphMetadata] = {
        name: metadata_of(path) for name, path in files.items()
    }
    first = next(iter(said.values()))
    if source is None and first.preset not in EMBEDDED:
        raise UsageError(
            f"{folder} is of preset {first.preset}; name the model it was made from with --model"
        )
    graph = subject_of(source or first.preset, loras).graph
    precision: Precision = next(
        p for p, dtype in DTYPES.items() if str(dtype) == f"torch.{first.dtype}"
    )
    typed = copy.deepcopy(graph).to(DTYPES[precision])
    _require_same_model(files, said, typed)
    faces = fixed_faces(graph.preset.size, photos)
    try:
        altered: list[ComponentName] = [
            n for n, path in files.items() if not _as_written(typed, n, path, said[n], say)
        ]
        parity = measure(graph, faces, run_files(files, faces), files)
        for line in report(parity, precision):
            say(line)
        if bisect or altered:
            say(_bisected(files, graph, typed, faces[-1:], precision))
        require(parity, precision)
        if altered:
            raise ModelError(
                f"{files[altered[0]]} is not what this version writes of the model: it was altered after it was "
                f"exported. Export again: fr-deploy export MODEL -o {folder}"
            )
    except ModelError:
        (folder / FILE).unlink(missing_ok=True)
        raise
    if not (folder / FILE).is_file():
        return parity
    manifest = replace(parse_manifest((folder / FILE).read_bytes()), parity=parity)
    if manifest.gpu is not None:
        manifest = replace(manifest, verified="onnx only")
    write_manifest(folder, manifest)
    return verify_engines(folder, manifest, graph, faces, say).parity


def _require_same_model(
    files: Files, said: dict[ComponentName, GraphMetadata], typed: RestorationGraph
) -> None:
    for name, metadata in said.items():
        if metadata.graph != graph_hash(typed, name):
            raise ModelError(
                f"{files[name]} was made from other weights than those given; name the model with --model and its "
                "LoRAs with --lora"
            )


def _as_written(
    typed: RestorationGraph, name: ComponentName, path: Path, said: GraphMetadata, say: Say
) -> bool:
    """Whether a file is, byte by byte, what is written here; True where other versions would write another."""
    now = graph_metadata(typed, int(said.opset), name)
    if now != said:
        say(f"{path}: written by other versions ({said.version}, torch {said.torch}), so only run")
        return True
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / path.name
        export_onnx(typed, fresh, part=name, opset=int(said.opset))
        beside = [p.name for p in fresh.parent.iterdir()]
        same = all(
            (path.parent / n).is_file()
            and file_sha256(fresh.parent / n) == file_sha256(path.parent / n)
            for n in beside
        )
    say(f"{path}: {'as this version writes it, byte by byte' if same else 'ALTERED'}")
    return same


@torch.inference_mode()
def _bisected(
    files: Files,
    graph: RestorationGraph,
    typed: RestorationGraph,
    face: torch.Tensor,
    precision: Precision,
) -> str:
    """Part by part: against the file written anew, whose tensors must be equal; then against one in float32."""
    given = {"faces": face, **graph.stages(face)._asdict()}
    found = _search(files, typed, given, 0.0)
    if found is None and precision != "fp32":
        found = _search(files, graph, given, 10 ** (-FLOORS[precision].psnr / 20))
    return str(found) if found else "no tensor departs from what the model computes"


def _search(
    files: Files, right: RestorationGraph, given: dict[str, torch.Tensor], tolerance: float
) -> Departure | None:
    for name, path in files.items():
        takes = ENDS[name].takes
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / path.name
            export_onnx(right, fresh, part=name)
            found = first_departure(path, fresh, {takes: given[takes].numpy()}, tolerance)
        if found is not None:
            return found
    return None
