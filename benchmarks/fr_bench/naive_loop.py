"""The loop that serve-batch is measured against: what one writes first for a folder of photos.

One photo after the other: Pillow reads it, its faces are found, cut out, restored and pasted back by the same
functions, Pillow writes it as PNG. No checks, no ledger, nothing that survives a crash.

    python -m fr_bench.naive_loop SRC DST fake:6ms+1.5ms
"""

import sys
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from fr_deploy.batch.device import parse_fake
from fr_deploy.batch.work import Faces, Restored
from fr_deploy.faces import FaceDetector, align_faces, paste_face


class Device(Protocol):
    """What restores a batch."""

    def __call__(self, task: Faces, /) -> Restored:
        """Restore."""
        ...


def naive_loop(source: Path, destination: Path, device: Device) -> int:
    """Restore the JPEG files of a folder.

    Args:
        source: the folder.
        destination: takes a PNG file of the same stem for each; made if missing.
        device: restores all faces of a photo at once.

    Returns:
        How many photos there were.
    """
    destination.mkdir(parents=True, exist_ok=True)
    detector = FaceDetector()
    paths = sorted(source.glob("*.jpg"))
    for path in paths:
        with Image.open(path) as image:
            rgb = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        faces = detector.detect(rgb)
        if faces:
            crops, matrices = align_faces(rgb, faces)
            restored = device(Faces(crops)).crops
            for face, matrix in zip(restored, matrices, strict=True):
                paste_face(rgb, face, matrix)
        Image.fromarray(rgb).save(destination / f"{path.stem}.png")
    return len(paths)


if __name__ == "__main__":
    naive_loop(Path(sys.argv[1]), Path(sys.argv[2]), parse_fake(sys.argv[3]))
