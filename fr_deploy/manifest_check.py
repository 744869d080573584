"""Holds an exported directory to its manifest before a byte of it is loaded: engines are executable code.

What is refused names the field, what the manifest says, what is there, and the command that mends it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fr_deploy.errors import ModelError, ResourceError
from fr_deploy.manifest import (
    BATCH,
    FILE,
    MOST_BYTES,
    Component,
    Gpu,
    Manifest,
    Tensor,
    parse_manifest,
)
from fr_deploy.manifest_files import again, check_files, quoted
from fr_deploy.manifest_sign import check_signature

PORTABLE = (8, 0)
"""The oldest compute capability that an engine without a list of them runs on."""
INSTALL = {
    "tensorrt": "pip install 'fr-deploy[cuda]' tensorrt-cu13=={}",
    "tensorrt-rtx": "pip install 'fr-deploy[cuda]' tensorrt-rtx=={}",
}


@dataclass(frozen=True)
class Here:
    """What the machine at hand has; `fr_deploy.runtime.here.look` finds it."""

    versions: Mapping[str, str]
    """Of tensorrt and tensorrt-rtx, as far as installed."""
    gpu: str | None = None
    """Name of the GPU to run on; None: there is none."""
    capability: str | None = None
    driver: str | None = None
    """Its version, such as "580.65.06"; None where nobody says."""
    no_gpu: str = ""
    """Why there is none, and what to do about it."""


def check(
    folder: Path, here: Here, *, trusted: Path | None = None, allow_unverified: bool = False
) -> Manifest:
    """Read a directory's manifest and refuse whatever does not match it.

    In this order: the manifest, its signature, files and their sizes, digests, versions, GPU, driver, shapes, parity.

    Args:
        folder: as `fr-deploy export` wrote it.
        here: the machine it is to run on; matters to engines alone.
        trusted: file of the public key that must have signed the manifest. A signature that is there is checked
            without one, too, but anyone could have made it.
        allow_unverified: take engines whose ONNX files alone were compared with the model.

    Raises:
        ModelError: anything does not match.
        ResourceError: a package, a driver or a GPU is missing.
    """
    data = _manifest_data(folder)
    manifest = parse_manifest(data, str(folder / FILE))
    check_signature(folder, data, trusted)
    check_files(folder, manifest)
    if manifest.gpu is not None:
        _check_version(folder, manifest, here)
        _check_gpu(folder, manifest, manifest.gpu, here)
    _check_chain(folder, manifest)
    if manifest.verified == "onnx only" and not allow_unverified:
        raise ModelError(
            f"{folder / FILE}: verified is 'onnx only': its engines were never run, the ONNX files they were built of "
            "alone were compared with the model; allowed is 'engine'. On a machine with the GPU: fr-deploy verify "
            f"{quoted(folder)}; or run them as they are with --allow-unverified"
        )
    return manifest


def require_tensors(
    where: str, side: str, expected: Sequence[Tensor], found: Sequence[Tensor]
) -> None:
    """Hold what a loaded file takes or gives to its manifest.

    Args:
        where: the file.
        side: "inputs" or "outputs".
        expected: of the manifest.
        found: of the file, in any order.

    Raises:
        ModelError: name, dtype or shape differ.
    """
    ours, theirs = {t.name: t for t in expected}, {t.name: t for t in found}
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"{where}: {side} {name!r}: the manifest says {_shown(ours.get(name))}, the file has "
                f"{_shown(theirs.get(name))}; export it again: fr-deploy export BUNDLE -o DIR"
            )


def _manifest_data(folder: Path) -> bytes:
    path = folder / FILE
    if not path.is_file():
        reason = "has no manifest.json" if folder.is_dir() else "is no directory"
        raise ModelError(
            f"{folder} {reason}, so it is no finished export; make one, or finish it, with: "
            f"fr-deploy export BUNDLE -o {quoted(folder)}"
        )
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _check_version(folder: Path, manifest: Manifest, here: Here) -> None:
    flavour = manifest.format
    wanted, found = manifest.versions.get(flavour), here.versions.get(flavour)
    if wanted is None:
        raise ModelError(
            f"{folder / FILE}: versions has no {flavour}, which built the engines; make them anew: "
            f"{again(folder, manifest)}"
        )
    install = INSTALL[flavour].format(wanted)
    if found is None:
        raise ResourceError(f"{folder} needs {flavour} {wanted}, which is not installed: {install}")
    if found != wanted:
        raise ModelError(
            f"{folder / FILE}: versions.{flavour} is {wanted}, and {found} is installed; no other version loads its "
            f"engines: {install}, or build them anew: {again(folder, manifest)}"
        )


def _check_gpu(folder: Path, manifest: Manifest, gpu: Gpu, here: Here) -> None:
    if here.gpu is None or here.capability is None:
        raise ResourceError(
            f"{folder} holds engines for NVIDIA GPUs, and there is none: {here.no_gpu}. For a CPU: "
            f"fr-deploy export BUNDLE -o DIR --format onnx"
        )
    where, mend = folder / FILE, f"build for it: {again(folder, manifest)}"
    if gpu.name is not None and gpu.name != here.gpu:
        raise ModelError(
            f"{where}: gpu.name is {gpu.name!r}, and the GPU here is {here.gpu!r}; {mend}"
        )
    if gpu.capabilities and here.capability not in gpu.capabilities:
        raise ModelError(
            f"{where}: gpu.capabilities are {', '.join(gpu.capabilities)}, and {here.gpu} has {here.capability}; {mend}"
        )
    if not gpu.capabilities and numbers(here.capability) < PORTABLE:
        raise ModelError(
            f"{where}: gpu.capabilities is empty, which means 8.0 and later, and {here.gpu} has {here.capability}; "
            f"{mend} --compute-capability {here.capability}"
        )
    if gpu.driver and here.driver and numbers(here.driver) < numbers(gpu.driver):
        raise ResourceError(
            f"{where}: gpu.driver is {gpu.driver} or newer, and {here.driver} is installed; install a newer NVIDIA "
            "driver, and look at: nvidia-smi"
        )


def numbers(version: str) -> tuple[int, ...]:
    """Of a version, to compare: "580.65.06" is (580, 65, 6).

    Raises:
        ModelError: there is something else in it.
    """
    if not all(part.isascii() and part.isdigit() for part in version.split(".")):
        raise ModelError(f"{version!r} is no version; expected numbers with dots between")
    return tuple(int(part) for part in version.split("."))


def _check_chain(folder: Path, manifest: Manifest) -> None:
    first, last, where = manifest.components[0], manifest.components[-1], folder / FILE
    size = manifest.size
    faces = Tensor("", "uint8", (BATCH, size, size, 3))
    ends = ((first, first.inputs[0], "takes"), (last, last.outputs[0], "gives"))
    for component, tensor, does in ends:
        if not _alike(tensor, faces):
            raise ModelError(
                f"{where}: {component.name} {does} {tensor.name!r}, {_shown(tensor)}; with size {size} it is "
                f"{_shown(faces)}. Make it anew: {again(folder, manifest)}"
            )
    for one, other in zip(manifest.components, manifest.components[1:], strict=False):
        _check_joint(folder, manifest, one, other)


def _check_joint(folder: Path, manifest: Manifest, one: Component, other: Component) -> None:
    given, taken = one.outputs[0], other.inputs[0]
    if not _alike(given, taken):
        raise ModelError(
            f"{folder / FILE}: {one.name} gives {given.name!r}, {_shown(given)}, and {other.name} takes "
            f"{taken.name!r}, {_shown(taken)}; both must be the same. Make it anew: {again(folder, manifest)}"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _shown(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"{tensor.dtype} [{', '.join(map(str, tensor.shape))}]"
