"""A bundle as a directory of verified graphs or engines, and its manifest: what `fr-deploy export` does."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fr_deploy.errors import ModelError, UsageError
from fr_deploy.manifest import FILE, ComponentName, Format, Manifest, Precision, write_manifest
from fr_deploy.models.lora import LoraFile
from fr_deploy.models.restorer import RestorationGraph
from fr_export.cache import export_key
from fr_export.described import ends_of, files_of, manifest_of
from fr_export.engine import PRECISIONS, EngineBuilt, build_engine
from fr_export.engine_graph import EngineGraph, read_graph
from fr_export.engine_options import EngineOptions, installed, require_installed
from fr_export.engine_process import Step
from fr_export.onnx import export_onnx
from fr_export.options import Options, options_of
from fr_export.run_engines import verify_engines
from fr_export.session import Files, run_files
from fr_export.state import Made, file_of, finished, forget_others, key_of, record, writing
from fr_export.subject import Source, Subject, subject_of
from fr_export.verify import fixed_faces, measure, report, require

Say = Callable[[str], None]
Progress = Callable[[str, Step], None]


def export(
    source: Source,
    out: Path,
    *,
    loras: Sequence[LoraFile] = (),
    format: Format = "onnx",  # noqa: A002
    precision: Precision | None = None,
    batch: str | None = None,
    buckets: Sequence[int] = (),
    whole: bool = False,
    capabilities: Sequence[str] = (),
    workspace: int | None = None,
    timing_cache: Path | None = None,
    photos: Path | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a directory of ONNX files and engines of them, run it beside the float32 graph, and vouch for it.

    Stopped at any moment and started again it goes on: what is finished and made of the same is kept. The manifest is
    written last, and only if all figures are above their floors.

    Args:
        source: as `subject_of`.
        out: of an earlier export, empty or absent.
        loras: fused into the weights.
        format, precision, batch, buckets, whole, capabilities, workspace, timing_cache: as `options_of`.
        photos: a folder of photos whose faces are compared, too.
        say: hears a line for each thing done.
        progress: hears the name of the engine being built, and each step of it.

    Returns:
        What was written as DIR/manifest.json.

    Raises:
        UsageError: as `options_of`, or `out` holds something else.
        ModelError: as `read_bundle`, `export_onnx` and `build_engine`; or the export computes something else.
        ResourceError: a package, memory or disk space is missing; another export is writing there.
    """
    options = options_of(
        format,
        precision=precision,
        batch=batch,
        buckets=buckets,
        whole=whole,
        capabilities=capabilities,
        workspace=workspace,
        timing_cache=timing_cache,
    )
    if options.engine is not None:
        require_installed(options.engine.flavour)
    subject = subject_of(source, loras)
    _require_batches(subject.graph, options)
    if subject.proof:
        say(subject.proof)
    with writing(out):
        return _export(subject, out, options, photos, say, progress)


def _require_batches(graph: RestorationGraph, options: Options) -> None:
    most = max(batches.most for batches in options.batches)
    if most > graph.most:
        raise UsageError(
            f"a batch of {most} is asked for; a picture in the autoencoder of {graph.preset.name} then has 2^31 values "
            f"and more, which kernels do not count: allowed are {graph.most} at most"
        )


def _export(
    subject: Subject,
    out: Path,
    options: Options,
    photos: Path | None,
    say: Say,
    progress: Progress | None,
) -> Manifest:
    (out / FILE).unlink(missing_ok=True)
    graphs = dict(_graphs(subject, out, options, say))
    files: Files = {name: out / f"{name}.onnx" for name in options.names}
    faces = fixed_faces(subject.graph.preset.size, photos)
    parity = measure(subject.graph, faces, run_files(files, faces), files)
    for line in report(parity, options.precision):
        say(line)
    require(parity, options.precision)
    engines: dict[ComponentName, Made] = {
        name: _engine(name, graphs[name], out, options.engine, say, progress)
        for name in (options.names if options.engine else ())
    }
    manifest = manifest_of(subject, options, graphs, engines, parity)
    forget_others(
        out, {file.path for made in (*graphs.values(), *engines.values()) for file in made.files}
    )
    write_manifest(out, manifest)
    manifest = verify_engines(out, manifest, subject.graph, faces, say)
    say(f"{out / FILE}  verified: {manifest.verified}")
    return manifest


def _graphs(
    subject: Subject, out: Path, options: Options, say: Say
) -> Iterator[tuple[ComponentName, Made]]:
    graph = subject.graph
    if options.precision != "fp32":
        graph = copy.deepcopy(graph).to(options.dtype)
    for name in options.names:
        yield name, _graph(graph, name, out, options, say)


def _graph(
    graph: RestorationGraph, name: ComponentName, out: Path, options: Options, say: Say
) -> Made:
    file, key = f"{name}.onnx", export_key(graph, name)
    if made := finished(out, file, key):
        say(f"{file}  was finished")
        return made
    started = time.perf_counter()
    export_onnx(graph, out / file, part=name)
    seconds, read = time.perf_counter() - started, read_graph(out / file)
    require_precision(out / file, read, options.precision)
    say(f"{file}  {read.parameters / 1e6:.1f} MB of weights, {read.nodes} nodes, {seconds:.1f} s")
    details = {"half": read.half, "nodes": read.nodes} | ends_of(out / file)
    return record(out, file, key, Made(files_of(out, file), details))


def require_precision(path: Path, graph: EngineGraph, precision: Precision) -> None:
    """Refuse a graph whose multiplications are in another precision than was asked for.

    Raises:
        ModelError: most of them are.
    """
    if PRECISIONS[graph.precision] != precision:
        raise ModelError(
            f"{path} has {graph.half:.0%} of its multiplications in half precision, most in {graph.precision}, and "
            f"{precision} is asked for; remove the directory and export again"
        )


def _engine(
    name: ComponentName,
    graph: Made,
    out: Path,
    options: EngineOptions | None,
    say: Say,
    progress: Progress | None,
) -> Made:
    assert options is not None
    file = f"{name}.engine"
    key = key_of(graph.files, options, installed(options.flavour))
    if made := finished(out, file, key):
        say(f"{file}  was finished")
        return made
    watch = None if progress is None else lambda step: progress(file, step)
    built = build_engine(out / f"{name}.onnx", out / file, options, progress=watch)
    say(_summary(file, built))
    details = {
        "version": built.version,
        "capabilities": list(built.capabilities),
        "layers": built.layers,
        "half": built.half,
        "half_layers": built.half_layers,
        "seconds": built.seconds,
        "peak_bytes": built.peak_bytes,
    }
    return record(out, file, key, Made((file_of(out, file, "engine"),), details))


def _summary(file: str, built: EngineBuilt) -> str:
    target = ", ".join(built.capabilities) or "8.0 and later"
    return (
        f"{file}  {built.bytes / 1e6:.1f} MB, {built.flavour} {built.version}, compute capability {target}; "
        f"{built.layers} layers, {built.half:.0%} of the multiplications in half precision; {built.seconds:.1f} s, up "
        f"to {built.peak_bytes / 1e9:.2f} GB of memory"
    )
