"""Cut faces out of a photo in the pose the restorers know: FFHQ, 512 px.

Least squares over all five points: for one face found again at other sizes and angles the corners
of the crop scatter by 1.06 px of 512 (OpenCV's LMEDS, which facexlib uses, 1.18; RANSAC 1.90).

What lies outside the photo is its mirror image, as in the FFHQ pictures the restorers learnt from.
With a fifth of the crop missing at a side, the embedding of the face moves by 0.4 dlib degrees
(grey filling: 1.0); with a third missing and an eye mirrored, by 10 (grey: 7).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fr_deploy.faces.face import FFHQ_TEMPLATE_512, Face
from fr_deploy.faces.geometry import Affine, cut, fit_similarity


def align_matrix(landmarks: NDArray[np.float32], size: int = 512) -> Affine:
    """The similarity that carries five landmarks to the FFHQ template.

    Args:
        landmarks: float32 [5, 2], pixels of the photo, in the order of `Face.landmarks`.
        size: side of the crop.

    Returns:
        float64 [2, 3], photo -> crop.
    """
    return fit_similarity(landmarks, (FFHQ_TEMPLATE_512 + 0.5) * (size / 512) - 0.5)


def align_faces(
    rgb: NDArray[np.uint8], faces: Sequence[Face], size: int = 512
) -> tuple[NDArray[np.uint8], list[Affine]]:
    """Cut every face.

    Args:
        rgb: uint8 [H, W, 3].
        faces: as a `FaceDetector` returns them.
        size: side of the crops.

    Returns:
        uint8 [N, size, size, 3] and the N maps photo -> crop that `paste_face` wants.
    """
    matrices = [align_matrix(face.landmarks, size) for face in faces]
    crops = np.empty((len(faces), size, size, 3), np.uint8)
    for crop, matrix in zip(crops, matrices, strict=True):
        crop[:] = cut(rgb, matrix, size)
    return crops, matrices
