"""What an export has finished, kept beside it, so that one that was stopped goes on where it was."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fr_deploy.atomic import atomic_write
from fr_deploy.errors import ResourceError, UsageError
from fr_deploy.manifest import FILE, File

FOLDER = ".state"
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Made:
    """A finished file, those beside it, and what is to be known of them."""

    files: tuple[File, ...]
    details: Mapping[str, Any]
    """JSON."""


def finished(folder: Path, name: str, key: str) -> Made | None:
    """What was made under a name, if it was made of the same and lies there unharmed.

    Args:
        folder: of the export.
        name: such as "encoder.onnx".
        key: of all it is made of.
    """
    try:
        said = json.loads(_path(folder, name).read_text())
        made = Made(tuple(File(**file) for file in said["files"]), said["details"])
        same = said["key"] == key and all(file_of(folder, f.path, f.role) == f for f in made.files)
    except (OSError, ValueError, KeyError, TypeError):  # never made, or a record of another version
        return None
    return made if same else None


def record(folder: Path, name: str, key: str, made: Made) -> Made:
    """Remember what is finished; returns it."""
    said = {"key": key, "files": [asdict(f) for f in made.files], "details": dict(made.details)}
    with atomic_write(_path(folder, name)) as file:
        file.write(json.dumps(said, indent=1).encode())
    return made


def file_of(folder: Path, name: str, role: Any) -> File:
    """A file as a manifest names it."""
    path = folder / name
    return File(role, name, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """Of a file's bytes, a few at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def key_of(*things: object) -> str:
    """A digest of what something is made of: of paths the content, of all else the text."""
    digest = hashlib.sha256()
    for thing in things:
        text = file_sha256(thing) if isinstance(thing, Path) else str(thing)
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Hold a folder for one export: no other writes it, and what a killed one left half-written is removed.

    Raises:
        UsageError: the folder holds something else than an export.
        ResourceError: another export is writing it.
    """
    state = folder / FOLDER
    if folder.exists() and not (folder.is_dir() and (state.is_dir() or not any(folder.iterdir()))):
        raise UsageError(f"{folder} is no earlier export and not empty; choose another with -o")
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(f"another export is writing {folder}; wait for it") from error
        _sweep(folder)
        yield


def forget_others(folder: Path, names: set[str]) -> None:
    """Remove the files of earlier exports that are none of these."""
    kept = names | {FILE, FOLDER}
    for path in folder.iterdir():
        if path.name not in kept and path.suffix in (".onnx", ".engine", ".data"):
            path.unlink()


def _sweep(folder: Path) -> None:
    for place in (folder, folder / FOLDER):
        for path in place.glob(".*.part"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _path(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name}.json"
