"""What is exported: a graph in float32, and what its weights are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fr_deploy.bundle import Bundle, load_graph, read_bundle
from fr_deploy.errors import UsageError
from fr_deploy.manifest import Lora
from fr_deploy.models.lora import LoraFile
from fr_deploy.models.lora_disk import weights_file
from fr_deploy.models.restorer import RestorationGraph
from fr_export.onnx import graph_hash
from fr_export.state import file_sha256, key_of

Source = str | Path | Bundle | RestorationGraph


@dataclass(frozen=True)
class Subject:
    """A graph and where it comes from."""

    graph: RestorationGraph
    """In float32 on the CPU."""
    weights: str
    """SHA-256 of the bundle's weights, before LoRAs; of a graph's own, where no bundle is known."""
    loras: tuple[Lora, ...]
    proof: str
    """What fusing LoRAs proved; empty without any."""


def subject_of(source: Source, loras: Sequence[LoraFile] = ()) -> Subject:
    """Load what is to be exported.

    Args:
        source: a bundle by name, folder or hub id, one that was read, or a graph in float32.
        loras: to fuse into a bundle that is named.

    Raises:
        ModelError, ResourceError: as `read_bundle`.
        UsageError: LoRAs for what is loaded already.
    """
    if isinstance(source, RestorationGraph | Bundle) and loras:
        raise UsageError("LoRAs are fused as a bundle is read: read_bundle(name, loras=...)")
    if isinstance(source, RestorationGraph):
        return Subject(source, graph_hash(source), (), "")
    bundle = source if isinstance(source, Bundle) else read_bundle(source, loras=loras)
    files = sorted(bundle.folder.glob("*/*.safetensors"))
    weights = key_of(*(thing for f in files for thing in (f.parent.name, f.name, f)))
    return Subject(load_graph(bundle), weights, _loras(bundle), str(bundle.fused or ""))


def _loras(bundle: Bundle) -> tuple[Lora, ...]:
    if bundle.fused is None:
        return ()
    return tuple(
        Lora(lora.path.name, file_sha256(weights_file(lora.path)), lora.scale)
        for lora in bundle.fused.loras
    )
