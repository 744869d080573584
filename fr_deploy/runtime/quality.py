"""Whether a number format computes the same faces: measured on one, against float32, before anything is restored."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr_deploy.errors import UsageError
from fr_deploy.faces.identity import FaceEmbedder, deg_dlib
from fr_deploy.runtime.backend import Backend

FACE = Path(__file__).parent.parent / "weights" / "gate-face.jpg"
JPEG_QUALITY = 95
"""What `fr-deploy restore` writes at: what saving takes from a face, a number format may take, too."""

Picture = NDArray[np.uint8]


class Quality(NamedTuple):
    """How far a face is from the same in float32."""

    psnr_db: float
    """Infinite where no byte differs."""
    degrees: float
    """Between dlib embeddings."""


def gate_face(size: int) -> Tensor:
    """A damaged portrait: uint8 [1, S, S, 3] RGB."""
    face = cv2.cvtColor(np.asarray(cv2.imread(str(FACE)), np.uint8), cv2.COLOR_BGR2RGB)
    return torch.from_numpy(
        np.asarray(cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA))[None]
    )


def refuse_if_worse_than_saving(backend: Backend, exact: Backend) -> Quality:
    """Hold a backend to float32: neither the picture nor the identity may move further than saving it as JPEG moves it.

    At t = 999 an error of the UNet is amplified 14.6 times (LAFR's step), and bfloat16 has 8 bits.

    Args:
        backend: the format in question.
        exact: the same graph in float32.

    Returns:
        What was measured.

    Raises:
        UsageError: the format is worse.
    """
    face = gate_face(exact.size)
    wanted, got = (run(face).numpy()[0] for run in (exact.run, backend.run))
    measured, allowed = _quality(got, wanted), _quality(_saved(wanted), wanted)
    if measured.psnr_db < allowed.psnr_db or measured.degrees > allowed.degrees:
        raise UsageError(
            f"{backend.dtype} does not keep this model's faces: {_say(measured)} from fp32; saving as JPEG at quality "
            f"{JPEG_QUALITY} keeps {_say(allowed)}. Choose --dtype fp16 or fp32"
        )
    return measured


def _quality(picture: Picture, wanted: Picture) -> Quality:
    error = np.square(picture.astype(np.float64) - wanted).mean()
    psnr = float(10 * np.log10(255**2 / error)) if error else float("inf")
    # The embedder looks at 512 px.
    both = [np.asarray(cv2.resize(p, (512, 512)), np.uint8) for p in (picture, wanted)]
    one, other = FaceEmbedder().embed(np.stack(both))
    return Quality(psnr, float(deg_dlib(one[None], other[None])[0]))


def _saved(picture: Picture) -> Picture:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def _say(quality: Quality) -> str:
    return f"{quality.psnr_db:.1f} dB and {quality.degrees:.2f} degrees"
