"""What an export will take, before anything is written where it is to go."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fr_deploy.models.lora import LoraFile
from fr_export.engine_estimate import estimate_engine, require_room
from fr_export.engine_graph import read_graph
from fr_export.onnx import export_onnx
from fr_export.options import options_of
from fr_export.subject import Source, subject_of


def dry_run(
    source: Source,
    out: Path,
    *,
    loras: Sequence[LoraFile] = (),
    say: Callable[[str], None],
    format: Any = "onnx",  # noqa: A002
    **given: Any,
) -> None:
    """Say what every file would hold and take. The graphs are written to a temporary folder, which is removed.

    Args:
        source, out, loras, format: as `fr_export.export`, and all its other options.
        say: hears a line a file.

    Raises:
        UsageError, ModelError: as `fr_export.export`.
        ResourceError: an engine would not fit into memory or on the disk.
    """
    options = options_of(format, **given)
    graph = subject_of(source, loras).graph.to(options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            path = Path(folder) / f"{name}.onnx"
            export_onnx(graph, path, part=name)
            read = read_graph(path)
            if options.engine is None:
                say(f"{name}.onnx: {read.parameters / 1e6:.1f} MB of weights, {read.nodes} nodes")
                continue
            estimate = estimate_engine(read, out / f"{name}.engine", options.engine)
            say(f"{name}.engine: {estimate}")
            require_room(estimate)
