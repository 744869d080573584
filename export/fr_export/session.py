"""Exported parts in onnxruntime, one at a time, with all that they give: for comparison, not for speed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from fr_deploy.errors import ModelError
from fr_deploy.manifest import PARTS, WHOLE, ComponentName
from fr_deploy.models.parts import ENDS
from fr_deploy.runtime.metadata import GraphMetadata
from fr_export.widened import runnable

Files = Mapping[ComponentName, Path]
Arrays = dict[str, np.ndarray[Any, Any]]


def exported_files(folder: Path) -> Files:
    """The ONNX files of an exported directory, in the order they run.

    Raises:
        ModelError: neither all parts nor the whole lies there.
    """
    for names in (PARTS, (WHOLE,)):
        files: dict[Any, Path] = {name: folder / f"{name}.onnx" for name in names}
        if all(path.is_file() for path in files.values()):
            return files
    raise ModelError(
        f"{folder} holds neither {', '.join(PARTS)} nor {WHOLE} as .onnx; write them with: "
        f"fr-deploy export MODEL -o {folder}"
    )


def metadata_of(path: Path) -> GraphMetadata:
    """What a file says of itself.

    Raises:
        ModelError: it is damaged, or no export of this program.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and the file system each have their own
        raise ModelError(f"{path} cannot be read as ONNX: {error}") from error
    return GraphMetadata.of_props({p.key: p.value for p in model.metadata_props}, path)


def run_files(files: Files, faces: Tensor) -> dict[str, Tensor]:
    """All that the parts give, by name, for one face and then for the others together.

    Args:
        files: one behind the other.
        faces: uint8 [N, S, S, 3], N at least 1.

    Raises:
        ModelError: onnxruntime does not load a file.
    """
    values: Arrays = {"faces": faces.numpy()}
    for name, path in files.items():
        ends = ENDS[name]
        values |= run_file(path, {ends.takes: values[ends.takes]}, ends.gives)
    return {name: torch.from_numpy(value) for name, value in values.items()}


def run_file(
    path: Path,
    given: Mapping[str, np.ndarray[Any, Any]],
    wanted: Iterable[str],
    *,
    plain: bool = False,
) -> Arrays:
    """Outputs of one file by name, for the first of a batch and then for the others together.

    Args:
        path: of an ONNX file; a bfloat16 one runs as `runnable` makes it.
        given: inputs by name, float32 where the file takes bfloat16.
        wanted: outputs.
        plain: every node as the file has it, none fused with another.
    """
    wanted, count = list(wanted), len(next(iter(given.values())))
    with runnable(path) as file:
        session = _session(file, plain)
        results = [
            session.run(
                wanted,
                {name: np.ascontiguousarray(value[first:last]) for name, value in given.items()},
            )
            for first, last in ((0, 1), (1, count))
            if first < last
        ]
    return {name: np.concatenate(made) for name, *made in zip(wanted, *results, strict=True)}


def _session(path: Path, plain: bool) -> Any:
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of what a cut graph has no use for
    options.intra_op_num_threads = torch.get_num_threads()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_ALL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class but this one
        raise ModelError(f"{path} cannot be loaded by onnxruntime: {error}") from error
