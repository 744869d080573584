"""Faces of a photo: find them, cut them out aligned, paste them back, tell them apart.

A name is imported when it is first asked for: a process that only passes a `Face` on needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fr_deploy.faces.align import align_faces, align_matrix
    from fr_deploy.faces.detector import FaceDetector
    from fr_deploy.faces.face import FFHQ_TEMPLATE_512, Face
    from fr_deploy.faces.identity import FaceEmbedder, deg_dlib
    from fr_deploy.faces.paste import PasteStats, paste_face, scaled_matrix, upscale_photo

__all__ = [
    "FFHQ_TEMPLATE_512",
    "Face",
    "FaceDetector",
    "FaceEmbedder",
    "PasteStats",
    "align_faces",
    "align_matrix",
    "deg_dlib",
    "paste_face",
    "scaled_matrix",
    "upscale_photo",
]
_MODULES = {
    "align": ("align_faces", "align_matrix"),
    "detector": ("FaceDetector",),
    "face": ("FFHQ_TEMPLATE_512", "Face"),
    "identity": ("FaceEmbedder", "deg_dlib"),
    "paste": ("PasteStats", "paste_face", "scaled_matrix", "upscale_photo"),
}
_OWNER = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OWNER[name]}"), name)
