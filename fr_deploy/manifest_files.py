"""The files of an exported directory beside its manifest."""

import hashlib
import os
import shlex
from pathlib import Path, PurePosixPath

from fr_deploy.errors import ModelError
from fr_deploy.manifest import FILE, File, Manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a directory whose files are not those of its manifest: paths, then sizes, then digests.

    Raises:
        ModelError: a path that leaves the directory; a file that is missing, cut off, longer, or of other bytes.
    """
    files = [file for component in manifest.components for file in component.files]
    for file in files:
        _check_path(folder, file)
    for file in files:
        _check_size(folder, file, manifest)
    for file in files:
        digest = _digest(folder / file.path)
        if digest != file.sha256:
            raise ModelError(
                f"{folder / file.path}: sha256 is {digest}, the manifest says {file.sha256}: one of both was changed. "
                f"Copy the directory again, or make it anew: {again(folder, manifest)}"
            )


def _check_path(folder: Path, file: File) -> None:
    pure = PurePosixPath(file.path)
    inside = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts
    if not inside or "\\" in file.path or ":" in file.path or "\0" in file.path:
        raise ModelError(
            f"{folder / FILE}: the path {file.path!r} leaves the directory; allowed are files inside it. "
            "fr-deploy export writes no such path: do not use this directory"
        )
    real = os.path.realpath(folder / file.path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise ModelError(
            f"{folder / file.path} leads out of the directory, to {real}; allowed are files inside it. "
            f"Copy what it links to: cp -rL {quoted(folder)} COPY"
        )


def _check_size(folder: Path, file: File, manifest: Manifest) -> None:
    path = folder / file.path
    if not path.is_file():
        raise ModelError(
            f"{path} is missing, the manifest lists it with {file.bytes} bytes; copy the directory again, or make it "
            f"anew: {again(folder, manifest)}"
        )
    size = path.stat().st_size
    if size != file.bytes:
        what = "was cut off" if size < file.bytes else "is longer than it was"
        raise ModelError(
            f"{path} {what}: it has {size} bytes, the manifest says {file.bytes}; copy the directory again, or make it "
            f"anew: {again(folder, manifest)}"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_bytes(folder: Path, file: File) -> bytes:
    """A file's bytes, held to the manifest again: what is run is what was checked, whoever wrote in between.

    Raises:
        ModelError: they are other bytes.
    """
    data = (folder / file.path).read_bytes()
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise ModelError(f"{folder / file.path} was changed while it was read; run again")
    return data


def again(folder: Path, manifest: Manifest) -> str:
    """The command that makes a directory anew."""
    return (
        f"fr-deploy export BUNDLE -o {quoted(folder)} --format {manifest.format} "
        f"--precision {manifest.precision}"
    )


def quoted(folder: Path) -> str:
    """As a shell takes it."""
    return shlex.quote(str(folder))
