"""Where everything lies that can be made or fetched again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$FR_DEPLOY_CACHE`, else `~/.cache/fr-deploy`."""
    root = os.environ.get("FR_DEPLOY_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "fr-deploy"
