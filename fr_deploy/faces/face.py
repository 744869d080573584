"""What a face is: a box, five points and a score; and where FFHQ puts the points."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Left eye, right eye, nose, left and right mouth corner of FFHQ at 512 px (facexlib's numbers).
FFHQ_TEMPLATE_512 = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a photo, in its pixels; pixel centres lie at integers.

    Attributes:
        box: float32 [4], x0 y0 x1 y1 around brow, chin and cheeks; may reach outside the photo.
        landmarks: float32 [5, 2], (x, y) of the left eye, right eye, nose, left and right mouth
            corner, left and right as the viewer sees an upright face.
        score: confidence, 0 to 1.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float
