"""Exporters of the restoration graph: ONNX and engines, verified.

`fr_export.export(bundle, out, ...)` writes a directory of them, `fr_export.verify_directory(folder, ...)` verifies one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fr_export.directory import export
    from fr_export.verification import verify_directory

__all__ = ["export", "verify_directory"]
_PLACES = {"export": "fr_export.directory", "verify_directory": "fr_export.verification"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: torch takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fr_export' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
