"""Faces of a photo: find them, cut them out aligned, paste them back, tell them apart."""

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
