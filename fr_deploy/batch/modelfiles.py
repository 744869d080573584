"""What a run's model is, by the digests of its files: a resume with another one is refused. Imports no torch."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fr_deploy import __version__
from fr_deploy.bundle_place import bundle_folder
from fr_deploy.errors import ModelError

FAKE = "fake:"
"""Of devices that stand in for a model."""
_MANIFEST = "manifest.json"
_VERSION = {"fr_deploy": __version__}  # another one may find, cut out or encode otherwise
_COUNTED = {".json", ".safetensors"}


def model_digests(how: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what a model and the code around it answer, as JSON values.

    Args:
        how: the options `model`, `loras`, `engines`, `devices`, `dtype`, `backend` and `attention`. The devices
            themselves are left out, so that a run can be resumed on others.

    Raises:
        ModelError: a file is missing.
        ResourceError: a bundle that the hub did not give.
    """
    if any(device.startswith(FAKE) for device in how["devices"]):
        return {"fake": True, **_VERSION}
    asked = _VERSION | {name: how[name] for name in ("dtype", "backend", "attention")}
    if how["engines"] is not None:
        manifest = Path(how["engines"]) / _MANIFEST
        if not manifest.is_file():
            raise ModelError(f"{how['engines']} was not exported: it holds no {_MANIFEST}")
        return {"engines": _sha256([manifest]), **asked}
    folder = bundle_folder(how["model"])
    return {
        "bundle": _sha256(_files(folder)),
        "loras": [_lora(text) for text in how["loras"]],
        **asked,
    }


def _lora(text: str) -> dict[str, str]:
    """Digest and scale of `PATH[:SCALE][:alpha=N]`; the longest part of it that is a file or folder is the path."""
    parts = text.split(":")
    for count in range(len(parts), 0, -1):
        path = Path(":".join(parts[:count]))
        if path.name and path.exists():
            files = _files(path) if path.is_dir() else [path]
            return {"sha256": _sha256(files), "scale": ":".join(parts[count:])}
    raise ModelError(f"--lora {text}: there is no such file or folder")


def _files(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in _COUNTED]
    if not found:
        raise ModelError(f"{folder} holds no model: no .safetensors and no .json in it")
    return found


def _sha256(files: Iterable[Path]) -> str:
    """Of the digests of files, in their order: 1.5 s for 1.7 GB."""
    whole = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    return whole.hexdigest()
