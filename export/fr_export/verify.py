"""An export beside the float32 graph it was made from: the same faces through both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from fr_deploy.errors import ImageError, ModelError, NoInputError
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import Agreement, agree

LEAST_PSNR = {"float32": 60.0, "float16": 40.0}
"""In dB. Float32 summed in another order moves a value across a rounding tie now and then: 1 of 255 in 6 % of the
values would be 60 dB. In float16 every layer rounds to 11 bits, and of two codes nearly as near the other may win."""


class Backend(Protocol):
    """What runs an export."""

    name: str
    size: int

    def run(self, faces: Tensor) -> Tensor:
        """Uint8 [B, S, S, 3] -> the same."""
        ...


@torch.inference_mode()
def compare(graph: RestorationGraph, backend: Backend, faces: Tensor) -> Agreement:
    """Run both, one face at a time.

    Args:
        graph: in float32.
        backend: runs the export.
        faces: uint8 [N, S, S, 3], N at least 1.
    """
    ours = torch.cat([backend.run(face) for face in faces.split(1)])
    wanted = torch.cat([graph(face) for face in faces.split(1)])
    return agree(ours, wanted)


def require(agreement: Agreement, dtype: str, what: str) -> None:
    """Refuse an export that computes something else.

    Raises:
        ModelError: the pictures are further apart than the dtype explains.
    """
    if agreement.psnr < LEAST_PSNR[dtype]:
        raise ModelError(
            f"the export does not compute what the graph computes: of {what}, {agreement}; allowed in {dtype} are "
            f"{LEAST_PSNR[dtype]:.0f} dB or more. Do not use the file; --dtype fp32 shows whether rounding is to blame"
        )


def demo_photos() -> Path | None:
    """The demo photos, where this is a checkout."""
    folder = Path(__file__).resolve().parents[2] / "assets" / "demo"
    return folder if folder.is_dir() else None


def photo_faces(folder: Path, size: int) -> Tensor:
    """All faces of the photos in a folder, aligned: uint8 [N, size, size, 3].

    Raises:
        NoInputError: there is no face.
    """
    crops = [
        cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) for crop in _crops(folder)
    ]
    if not crops:
        raise NoInputError(
            f"{folder} holds no photo with a face; name another folder with --photos"
        )
    return torch.from_numpy(np.stack(crops))


def _crops(folder: Path) -> Iterator[np.ndarray]:
    from fr_deploy.faces import FaceDetector, align_faces
    from fr_deploy.images import read_photo

    detector = FaceDetector()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            photo = read_photo(path).rgb
        except ImageError:
            continue
        if faces := detector.detect(photo):
            yield from align_faces(photo, faces)[0]
