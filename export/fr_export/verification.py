"""An exported directory held to its model again: what `fr-deploy verify` does."""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
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
from fr_export.onnx import export_onnx, graph_hash, graph_metadata, phased
from fr_export.options import DTYPES
from fr_export.run_engines import verify_engines
from fr_export.session import Files, exported_files, metadata_of, run_files
from fr_export.state import file_sha256
from fr_export.subject import Source, subject_of
from fr_export.verify import fixed_faces, measure, report, require

Say = Callable[[str], None]
TOLERANCE: Mapping[Precision, float] = {"fp16": 0.01, "bf16": 0.08}
"""Relative error of an inner tensor that rounding explains: in float16 that of 40 dB; bfloat16 has three bits fewer."""


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
    of = _read(folder, source, loras)
    faces = fixed_faces(of.graph.preset.size, photos)
    try:
        parity = _parity(folder, of, faces, bisect, say)
    except ModelError:
        (folder / FILE).unlink(missing_ok=True)
        raise
    if not (folder / FILE).is_file():
        return parity
    before = parse_manifest((folder / FILE).read_bytes())
    verified = before.verified if before.gpu is None else "onnx only"
    manifest = replace(before, parity=parity, verified=verified)
    if manifest != before:  # the same figures leave a signature whole
        write_manifest(folder, manifest)
    return verify_engines(folder, manifest, of.graph, faces, say).parity


@dataclass(frozen=True)
class _Directory:
    """What lies there, and what it was made from."""

    files: Files
    said: Mapping[ComponentName, GraphMetadata]
    precision: Precision
    graph: RestorationGraph
    """In float32."""
    typed: RestorationGraph
    """In the precision of the files."""


def _read(folder: Path, source: Source | None, loras: Sequence[LoraFile]) -> _Directory:
    files = exported_files(folder)
    said: dict[ComponentName, GraphMetadata] = {n: metadata_of(path) for n, path in files.items()}
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
    for name, metadata in said.items():
        if metadata.graph != graph_hash(typed, name):
            raise ModelError(
                f"{files[name]} was made from other weights than those given; name the model with --model and its "
                "LoRAs with --lora"
            )
    return _Directory(files, said, precision, graph, typed)


def _parity(folder: Path, of: _Directory, faces: torch.Tensor, bisect: bool, say: Say) -> Parity:
    altered = [path for name, path in of.files.items() if not _as_written(of, name, say)]
    parity = measure(of.graph, faces, run_files(of.files, faces), of.files)
    for line in report(parity, of.precision):
        say(line)
    if bisect or altered:
        say(_bisected(of, faces[-1:]))
    require(parity, of.precision)
    if altered:
        raise ModelError(
            f"{altered[0]} is not what this version writes of the model: it was altered after it was exported. Export "
            f"again: fr-deploy export MODEL -o {folder}"
        )
    return parity


def _as_written(of: _Directory, name: ComponentName, say: Say) -> bool:
    """Whether a file is, byte by byte, what is written here; True where other versions would write another."""
    path, said = of.files[name], of.said[name]
    if graph_metadata(of.typed, int(said.opset), name) != said:
        say(f"{path}: written by other versions ({said.version}, torch {said.torch}), so only run")
        return True
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / path.name
        export_onnx(of.typed, fresh, part=name, opset=int(said.opset))
        same = all(
            (path.parent / new.name).is_file()
            and file_sha256(new) == file_sha256(path.parent / new.name)
            for new in fresh.parent.iterdir()
        )
    say(f"{path}: {'as this version writes it, byte by byte' if same else 'ALTERED'}")
    return same


@torch.inference_mode()
def _bisected(of: _Directory, face: torch.Tensor) -> str:
    """Part by part: against the file written anew, whose tensors must be equal; then against one in float32."""
    given = {"faces": face, **of.graph.stages(face)._asdict()}
    found = _search(of.files, of.typed, given, 0.0)
    if found is None and of.precision != "fp32":
        with (
            phased(of.graph) if of.precision == "bf16" else nullcontext()
        ):  # or names would not be the same tensors'
            found = _search(of.files, of.graph, given, TOLERANCE[of.precision])
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
