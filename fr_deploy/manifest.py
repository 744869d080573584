"""What an exported directory says of itself: DIR/manifest.json. `fr-deploy export` writes it last, after `verify`.

    DIR/manifest.json
    DIR/{encoder,adapter,unet,decoder}.onnx, or whole.onnx; beside them .onnx.data where weights pass 2 GiB
    DIR/{encoder,adapter,unet,decoder}.engine, or whole.engine, in the TensorRT formats

`fr_deploy.manifest_check` holds a directory to it before anything is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ModelError
from fr_deploy.strict_json import of_json, to_json

SCHEMA = 1
FILE = "manifest.json"
SIGNATURE = "manifest.json.sig"
"""Of the manifest's bytes (`fr_deploy.manifest_sign`)."""
PARTS = ("encoder", "adapter", "unet", "decoder")
"""The components in the order they run; or `WHOLE` alone."""
WHOLE = "whole"
BATCH = "batch"
"""The symbol of the batch in a shape."""
MOST_BYTES = 16 << 20
"""No manifest is larger."""

Format = Literal["onnx", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16"]
Verified = Literal["engine", "onnx", "onnx only"]
ComponentName = Literal["encoder", "adapter", "unet", "decoder", "whole"]
Role = Literal["onnx", "data", "engine"]
Element = Literal["uint8", "int32", "int64", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Tensor:
    """One input or output."""

    name: str
    dtype: Element
    shape: tuple[int | str, ...]
    """`BATCH` first, then numbers."""


@dataclass(frozen=True)
class File:
    """One file of a component."""

    role: Role
    """The ONNX graph, its external weights, or the engine built of both."""
    path: str
    """Relative to the directory, with `/`; never leaves it."""
    bytes: int
    sha256: str
    """In lower-case hexadecimal, like every digest here."""


@dataclass(frozen=True)
class Component:
    """One graph: bytes or latents in, the same out."""

    name: ComponentName
    files: tuple[File, ...]
    inputs: tuple[Tensor, ...]
    """One: `faces` uint8 [batch, S, S, 3] of the encoder and the whole, else a latent [batch, C, h, w]."""
    outputs: tuple[Tensor, ...]
    """First what the next component takes, or `restored` uint8 [batch, S, S, 3]; the adapter's second and the
    whole's are `codes`, integers [batch, h * w]."""
    half: float
    """Share of the graph's multiplications in half precision."""
    half_layers: float | None
    """Share of the engine's layers that write half precision; None where no inspector could be asked."""

    def file(self, role: Role) -> File | None:
        """Its file of a role, if it has one."""
        return next((file for file in self.files if file.role == role), None)


@dataclass(frozen=True)
class Lora:
    """One LoRA in the weights."""

    name: str
    """Of its file or folder."""
    sha256: str
    """Of its tensors' file."""
    scale: float


@dataclass(frozen=True)
class Batches:
    """Batches one profile takes, and the one its kernels are chosen for; a bucket has all three equal."""

    least: int
    best: int
    most: int


@dataclass(frozen=True)
class Gpu:
    """What an engine runs on."""

    name: str | None
    """Of the one GPU it was built on; None: built by compute capability."""
    capabilities: tuple[str, ...]
    """Such as "8.9"; none: portable, 8.0 and later."""
    driver: str
    """The oldest driver, such as "580.65"; empty: not known."""


@dataclass(frozen=True)
class OutputParity:
    """One output against the float32 graph's."""

    component: ComponentName
    output: str
    cosine: float
    largest: float
    """Largest absolute error."""
    relative: float
    """Norm of the error over the norm of the float32 output."""


@dataclass(frozen=True)
class Parity:
    """What `fr-deploy verify` found, on fixed faces. In dB None means: no byte differs."""

    faces: int
    outputs: tuple[OutputParity, ...]
    psnr_forced: float | None
    """Of the pictures, where the float32 graph takes the artefact's codes."""
    psnr: float | None
    """Of the pictures, end to end."""
    codes: float
    """Share of the codes that are the float32 graph's."""
    identity: float | None
    """Mean degrees between face embeddings of both pictures; None where none was measured."""


@dataclass(frozen=True)
class Manifest:
    """All there is to know of an exported directory."""

    schema: int
    """`SCHEMA`; another is refused before anything else is read."""
    fr_deploy: str
    """Version that wrote it."""
    commit: str
    """Of the checkout that wrote it; empty for a wheel."""
    family: Literal["lafr"]
    preset: str
    size: int
    """Side of a face in pixels."""
    weights: str
    """SHA-256 of the bundle's weights, before LoRAs."""
    loras: tuple[Lora, ...]
    graph: str
    """`fr_export.onnx.graph_hash` of the folded graph in float32, LoRAs in it."""
    format: Format
    precision: Precision
    components: tuple[Component, ...]
    """`PARTS` in order, or `WHOLE` alone."""
    batches: tuple[Batches, ...]
    """One range, or buckets; of ONNX one range."""
    versions: Mapping[str, str]
    """By package: torch, onnx, onnxscript; tensorrt or tensorrt-rtx, which alone loads the engines."""
    gpu: Gpu | None
    """None in the format onnx, which runs on any."""
    kernels: Mapping[str, str]
    """SHA-256 of each kernel compiled into an engine, by name; none where the graph is of standard operators."""
    parity: Parity
    verified: Verified
    """What `parity` is of: the engines; the ONNX files, in the format onnx; or "onnx only", the ONNX files of engines
    that nothing could run where they were built."""

    def component(self, name: str) -> Component:
        """By name.

        Raises:
            KeyError: there is none.
        """
        return {c.name: c for c in self.components}[name]


def parse_manifest(data: bytes, where: str = FILE) -> Manifest:
    """Read what `manifest_bytes` made.

    Raises:
        ModelError: no JSON, another schema, or a field that is unknown, missing, of another type or impossible.
    """
    if len(data) > MOST_BYTES:
        raise ModelError(f"{where} has more than {MOST_BYTES} bytes, as no manifest has")
    manifest = of_json(Manifest, data, where, version=("schema", SCHEMA))
    _check_form(manifest, where)
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """As the file holds it.

    Raises:
        ModelError: it could not be read again.
    """
    data = to_json(manifest)
    parse_manifest(data)
    return data


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write DIR/manifest.json, whole or not at all; the signature of an older one is removed.

    Raises:
        ModelError: it could not be read again.
        ResourceError, ImageError: as `atomic_write`.
    """
    data, path = manifest_bytes(manifest), folder / FILE
    (folder / SIGNATURE).unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(data)
    return path


def _check_form(manifest: Manifest, where: str) -> None:
    names = tuple(component.name for component in manifest.components)
    if names not in (PARTS, (WHOLE,)):
        raise ModelError(
            f"{where}: components are {', '.join(names) or 'none'}; allowed are {', '.join(PARTS)}, or {WHOLE} alone"
        )
    for component in manifest.components:
        _check_component(component, manifest.format, where)
    ranges = [(b.least, b.best, b.most) for b in manifest.batches]
    if not ranges or not all(1 <= least <= best <= most for least, best, most in ranges):
        raise ModelError(f"{where}: batches are {ranges}; expected 1 <= least <= best <= most")
    if (manifest.gpu is None) != (manifest.format == "onnx"):
        raise ModelError(f"{where}: gpu is {manifest.gpu}, and the format is {manifest.format}")
    if (manifest.verified == "onnx") != (manifest.format == "onnx"):
        allowed = [
            kind for kind in get_args(Verified) if (kind == "onnx") == (manifest.format == "onnx")
        ]
        raise ModelError(
            f"{where}: verified is {manifest.verified!r}; in the format {manifest.format} it is {' or '.join(allowed)}"
        )


def _check_component(component: Component, form: Format, where: str) -> None:
    wanted: Role = "onnx" if form == "onnx" else "engine"
    roles = [file.role for file in component.files]
    if roles.count(wanted) != 1 or len(set(roles)) != len(roles):
        raise ModelError(
            f"{where}: files of {component.name} are {', '.join(roles) or 'none'}; expected one {wanted}, no role twice"
        )
    if len(component.inputs) != 1 or not component.outputs:
        raise ModelError(
            f"{where}: {component.name} has {len(component.inputs)} inputs and {len(component.outputs)} outputs; "
            "expected one input and at least one output"
        )
    for tensor in (*component.inputs, *component.outputs):
        if tensor.shape[:1] != (BATCH,) or not all(
            type(n) is int and n > 0 for n in tensor.shape[1:]
        ):
            raise ModelError(
                f"{where}: the shape of {component.name}'s {tensor.name} is {list(tensor.shape)}; expected "
                f"{BATCH!r}, then positive numbers"
            )
