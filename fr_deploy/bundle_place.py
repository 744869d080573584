"""Where a bundle lies; apart from what reads it, because that imports torch."""

import os
from importlib.resources import files
from pathlib import Path

from fr_deploy.errors import ModelError, ResourceError

INDEX = "model_index.json"
EMBEDDED = ("lafr-mini",)


def bundle_folder(name: str | Path) -> Path:
    """Where a bundle lies: an embedded name, a local folder, or a hub id (downloaded on first use).

    Raises:
        ModelError: there is no such folder and it cannot be a hub id.
        ResourceError: the hub could not be reached, or offline mode is on and nothing is cached.
    """
    if str(name) in EMBEDDED and not Path(name).exists():
        return Path(str(files("fr_deploy") / "weights" / str(name)))
    if Path(name).is_dir():
        return Path(name)
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        known = ", ".join(EMBEDDED)
        raise ModelError(f"no bundle {str(name)!r}: not a folder, a hub id, or one of: {known}")
    return _from_hub(str(name))


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [INDEX, "*/*.json", "*/*.safetensors", "README.md"]
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # the hub client raises a dozen unrelated types
        where = "the local hub cache (HF_HUB_OFFLINE is set)" if offline else "the hub"
        raise ResourceError(
            f"{repo}: not a folder here, and not found in {where}: {error}"
        ) from error
