"""Exported parts beside the float32 graph: every output, the pictures, the codes, the faces."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from fr_deploy.errors import ImageError, ModelError, NoInputError
from fr_deploy.faces.identity import FaceEmbedder, deg_dlib
from fr_deploy.manifest import ComponentName, OutputParity, Parity, Precision
from fr_deploy.models.parts import ENDS
from fr_deploy.models.restorer import RestorationGraph, Stages
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_deploy.runtime.quality import gate_face

RANDOM = 2


@dataclass(frozen=True)
class Floors:
    """What an export must reach."""

    psnr: float
    """In dB, of the pictures with codes forced."""
    codes: float
    """Share of the codes that are the float32 graph's."""


FLOORS: Mapping[Precision, Floors] = {
    "fp32": Floors(60.0, 0.999),
    "fp16": Floors(40.0, 0.99),
    "bf16": Floors(40.0, 0.92),
}
"""Float32 summed in another order moves a value across a rounding tie now and then: 1 of 255 in 6 % of the values would
be 60 dB. In float16 every layer rounds to 11 bits, and of two codes nearly as near the other may win. In bfloat16 it
rounds to 8, so eight times as many may; the picture must be as near as in float16. `lafr-mini` in bfloat16 has 54.6 dB
and 98.9 % of the codes, and the same in torch's own bfloat16."""


def fixed_faces(size: int, photos: Path | None = None) -> Tensor:
    """The faces every export is run on: two random pictures, a damaged portrait, and those of a folder of photos.

    Returns:
        uint8 [N, size, size, 3]; from the third on they show faces.

    Raises:
        NoInputError: the folder has no face.
    """
    given = [random_pictures(size, RANDOM), gate_face(size)]
    return torch.cat([*given, photo_faces(photos, size)] if photos else given)


@torch.inference_mode()
def measure(
    graph: RestorationGraph,
    faces: Tensor,
    values: Mapping[str, Tensor],
    parts: Mapping[ComponentName, object],
) -> Parity:
    """Hold what an export gave to what the float32 graph gives.

    Args:
        graph: in float32, with the weights the export was made from.
        faces: as `fixed_faces` returns them.
        values: all outputs of the export by name, its codes among them.
        parts: names of the parts they come from.
    """
    own, forced = _references(graph, faces, values["codes"])
    outputs = [
        _output(part, name, values[name], forced[name])
        for part in parts
        for name in ENDS[part].gives
        if name != "codes"
    ]
    restored = values["restored"]
    return Parity(
        faces=len(faces),
        outputs=tuple(outputs),
        psnr_forced=_finite(agree(restored, forced["restored"]).psnr),
        psnr=_finite(agree(restored, own["restored"]).psnr),
        codes=float((values["codes"] == own["codes"]).double().mean()),
        identity=_degrees(restored[RANDOM:], own["restored"][RANDOM:]),
    )


def require(parity: Parity, precision: Precision) -> None:
    """Refuse an export that computes something else.

    Raises:
        ModelError: the pictures or the codes are further apart than the precision explains.
    """
    floors = FLOORS[precision]
    psnr = math.inf if parity.psnr_forced is None else parity.psnr_forced
    finite = all(math.isfinite(o.relative) for o in parity.outputs)
    if psnr >= floors.psnr and parity.codes >= floors.codes and finite:
        return
    raise ModelError(
        f"the export does not compute what the graph computes: {psnr:.1f} dB with codes forced, {parity.codes:.3%} of "
        f"the codes agree; required in {precision} are {floors.psnr:.0f} dB and {floors.codes:.1%}. What would have "
        f"passed: {math.floor(psnr * 10) / 10:.1f} dB and {math.floor(parity.codes * 1e5) / 1e5:.3%}. Do not use the "
        "files; --bisect names the first tensor that departs"
    )


def report(parity: Parity, precision: Precision) -> Iterator[str]:
    """The figures, a line an output, and what was required."""
    floors = FLOORS[precision]
    for o in parity.outputs:
        yield (
            f"{o.component:8} {o.output:9} cosine {o.cosine:.9f}, error {o.relative:.2e} of the whole, "
            f"{o.largest:.3g} at most"
        )
    yield (
        f"pictures of {parity.faces} face{'s' * (parity.faces > 1)}: {_decibels(parity.psnr_forced)} with codes forced "
        f"({precision} requires {floors.psnr:.0f}), {_decibels(parity.psnr)} end to end"
    )
    degrees = "" if parity.identity is None else f"; identity {parity.identity:.2f} degrees"
    yield f"codes: {parity.codes:.3%} agree ({floors.codes:.1%}){degrees}"


def _references(
    graph: RestorationGraph, faces: Tensor, codes: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the graph gives by name, of its own codes and of these; one face at a time, as memory is."""
    own: list[Stages] = []
    forced: list[Stages] = []
    for face, row in zip(faces.split(1), codes.split(1), strict=True):
        made = graph.stages(face)
        own.append(made)
        forced.append(made if torch.equal(made.codes, row) else graph.decoded(made.latent, row))
    return _named(graph, own), _named(graph, forced)


def _named(graph: RestorationGraph, rows: list[Stages]) -> dict[str, Tensor]:
    made = {name: torch.cat(some) for name, *some in zip(Stages._fields, *rows, strict=True)}
    return made | {"restored": graph.to_bytes(made.pop("picture"))}


def _output(part: ComponentName, name: str, ours: Tensor, wanted: Tensor) -> OutputParity:
    a, b = ours.double().flatten(), wanted.double().flatten()
    error, norm = a - b, float(b.norm())
    cosine = float(a @ b) / (float(a.norm()) * norm or 1.0)
    return OutputParity(
        part, name, cosine, float(error.abs().max()), float(error.norm()) / (norm or 1.0)
    )


def _degrees(ours: Tensor, wanted: Tensor) -> float:
    pictures = torch.cat([ours, wanted]).numpy()
    rows = FaceEmbedder().embed(np.stack([cv2.resize(p, (512, 512)) for p in pictures]))
    return float(deg_dlib(rows[: len(ours)], rows[len(ours) :]).mean())


def _finite(psnr: float) -> float | None:
    return psnr if math.isfinite(psnr) else None


def _decibels(psnr: float | None) -> str:
    return "not a byte apart" if psnr is None else f"{psnr:.1f} dB"


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
