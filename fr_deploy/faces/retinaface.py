"""RetinaFace with a MobileNet-0.25 trunk: one square picture in, face candidates out.

Deng et al. 2020 (arXiv 1905.00641); the network is biubug6/Pytorch_Retinaface's, see
`fr_deploy/weights/NOTICE.md`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

WEIGHTS = Path(__file__).parent.parent / "weights" / "retinaface-mnet025.onnx"
MEAN_RGB = (123, 117, 104)
PRIORS = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))  # stride, sides of the prior squares
CENTRE_VARIANCE, SIZE_VARIANCE = (
    np.float32(0.1),
    np.float32(0.2),
)  # what the training divided the regression targets by


@dataclass(frozen=True)
class Candidates:
    """Faces of one picture before suppression, in its pixels (centres at integers).

    Attributes:
        boxes: float32 [K, 4], x0 y0 x1 y1.
        landmarks: float32 [K, 5, 2], in the order of `Face.landmarks`.
        scores: float32 [K], 0 to 1.
    """

    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    scores: NDArray[np.float32]


@cache
def prior_boxes(size: int) -> NDArray[np.float32]:
    """Prior squares of a `size` x `size` picture: float32 [K, 3], centre x, y and side, pixels."""
    rows: list[NDArray[np.float32]] = []
    for stride, sides in PRIORS:
        steps = (np.arange(-(-size // stride)) + 0.5) * stride
        y, x, side = np.meshgrid(steps, steps, sides, indexing="ij")
        rows.append(np.stack([x, y, side], -1).reshape(-1, 3).astype(np.float32))
    return np.concatenate(rows)


class RetinaFace:
    """The network in onnxruntime, on the CPU."""

    def __init__(self, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        # The arena would keep the working set of the largest picture for good.
        options.enable_cpu_mem_arena = False
        self._session = ort.InferenceSession(
            str(WEIGHTS), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, squares: NDArray[np.uint8], confidence: float) -> list[Candidates]:
        """Find candidates.

        Args:
            squares: uint8 [N, S, S, 3] RGB, S a multiple of 32.
            confidence: lowest score returned.

        Returns:
            one `Candidates` a picture.
        """
        inputs = {"input": _centred(squares)}
        outputs = self._session.run(["loc", "conf", "landmarks"], inputs)
        boxes, scores, points = (np.asarray(output, np.float32) for output in outputs)
        priors = prior_boxes(squares.shape[1])
        return [
            _decode(priors, boxes[i], scores[i, :, 1], points[i], confidence)
            for i in range(len(squares))
        ]


def _centred(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, S, S, 3] RGB -> [N, 3, S, S] BGR around 0; plane by plane, a side of 1280 takes 2 ms and not 11."""
    out = np.empty((len(squares), 3, *squares.shape[1:3]), np.float32)
    for square, planes in zip(squares, out, strict=True):
        for channel, plane in enumerate(cv2.split(square)):
            np.subtract(plane, np.float32(MEAN_RGB[channel]), out=planes[2 - channel])
    return out


def _decode(
    priors: NDArray[np.float32],
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    points: NDArray[np.float32],
    confidence: float,
) -> Candidates:
    keep = scores >= confidence
    centre, side = priors[keep, :2], priors[keep, 2:]
    # The network counts from the corner of the picture: x and its mirror image add up to the side,
    # 0.96 +- 0.13 px more than pixel centres would (faces of 16 to 32 px).
    middle = centre + boxes[keep, :2] * CENTRE_VARIANCE * side - 0.5
    half = side * np.exp(boxes[keep, 2:] * SIZE_VARIANCE) / 2
    offsets = points[keep].reshape(-1, 5, 2) * CENTRE_VARIANCE * side[:, None]
    found = np.concatenate([middle - half, middle + half], 1)
    landmarks = centre[:, None] + offsets - 0.5
    return Candidates(found.astype(np.float32), landmarks.astype(np.float32), scores[keep])
