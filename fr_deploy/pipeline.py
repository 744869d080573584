"""One photo through detect, select, align, restore and paste back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import ImageError, UsageError
from fr_deploy.settings import RestoreOptions

if TYPE_CHECKING:
    from fr_deploy.faces import Face

SIZE = 512
MAX_OUTPUT_PIXELS = 178_956_970  # what Pillow would refuse to open again


class Detector(Protocol):
    """What the pipeline needs of `fr_deploy.faces.FaceDetector`."""

    def detect(
        self, rgb: NDArray[np.uint8], *, min_face: int = ..., rotations: Sequence[int] = ...
    ) -> "list[Face]":
        """Find the faces of a photo uint8 [H, W, 3], left to right."""
        ...


class CropRestorer(Protocol):
    """What the pipeline needs of `fr_deploy.bundle.Restorer`."""

    def __call__(self, crops: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """Restore aligned faces, uint8 [N, 512, 512, 3] to the same."""
        ...


@dataclass(frozen=True)
class FoundFaces:
    """What the model is to be given of a photo."""

    faces: "tuple[Face, ...]"
    """Those that are restored, N of them; empty if the photo is `aligned`."""
    crops: NDArray[np.uint8]
    """[N, 512, 512, 3]; one if `aligned`."""
    matrices: tuple[NDArray[np.float64], ...]
    """[2, 3] of each face, from pixels of the photo to pixels of its crop."""


@dataclass(frozen=True)
class RestoredPhoto:
    """The result; with no face in the photo, `rgb` is the input (enlarged if asked) and N is 0."""

    rgb: NDArray[np.uint8]
    """[H * upscale, W * upscale, 3]."""
    faces: "tuple[Face, ...]"
    """The faces restored, N of them; empty if the input was `aligned`."""
    crops: NDArray[np.uint8]
    """[N, 512, 512, 3], what the model was given."""
    restored: NDArray[np.uint8]
    """[N, 512, 512, 3], what it gave back."""
    matrices: tuple[NDArray[np.float64], ...]
    """[2, 3] each, from pixels of the input photo to pixels of its crop; empty if `aligned`."""


def restore_photo(
    rgb: NDArray[np.uint8],
    detector: Detector | None,
    restorer: CropRestorer,
    options: RestoreOptions | None = None,
) -> RestoredPhoto:
    """Restore the faces of one photo; the input is not changed.

    All faces go through the model in one batch. Only the neighbourhood of each face is touched: every
    other pixel is the input's own. The photo is never held as floats, so a 24-megapixel photo costs
    one 72 MB copy.

    Args:
        rgb: uint8 [H, W, 3].
        detector: finds the faces; may be None if `options.aligned`.
        restorer: restores the crops.
        options: `RestoreOptions()` by default.

    Raises:
        ImageError: reason `too_large`, the enlarged photo would pass 179 megapixels.
        UsageError: no detector was given for a photo that is not aligned.
    """
    options = options or RestoreOptions()
    found = find_faces(rgb, detector, options)
    restored = restorer(found.crops) if len(found.crops) else found.crops
    return apply_faces(rgb, found, restored, options)


def find_faces(
    rgb: NDArray[np.uint8], detector: Detector | None, options: RestoreOptions
) -> FoundFaces:
    """The first half of `restore_photo`, all that comes before the model.

    Args:
        rgb: uint8 [H, W, 3].
        detector: finds the faces; may be None if `options.aligned`.
        options: which faces are wanted.

    Raises:
        ImageError, UsageError: as `restore_photo`.
    """
    _check_output_size(rgb, options.upscale)
    if options.aligned:
        return FoundFaces((), _square(rgb)[None], ())
    if detector is None:
        raise UsageError("a photo that is not aligned needs a detector; pass one, or aligned=True")
    from fr_deploy.faces import align_faces  # torch, which aligned photos do without

    found = detector.detect(rgb, min_face=options.min_face, rotations=options.rotations)
    faces = select_faces(found, options.faces, (rgb.shape[0], rgb.shape[1]))
    crops, matrices = align_faces(rgb, faces)
    return FoundFaces(tuple(faces), crops, tuple(matrices))


def apply_faces(
    rgb: NDArray[np.uint8],
    found: FoundFaces,
    restored: NDArray[np.uint8],
    options: RestoreOptions,
    *,
    in_place: bool = False,
) -> RestoredPhoto:
    """The second half of `restore_photo`, all that comes behind the model.

    Args:
        rgb: the photo that `find_faces` was given, uint8 [H, W, 3].
        found: what it returned.
        restored: uint8 [N, 512, 512, 3], what the model made of `found.crops`.
        options: the same.
        in_place: `rgb` may be written to, which saves a copy.
    """
    if options.aligned:
        out = _apply_aligned(rgb, found.crops[0], restored[0], options)
        return RestoredPhoto(out, (), found.crops, restored, ())
    from fr_deploy.faces import paste_face, scaled_matrix, upscale_photo

    if options.upscale != 1:
        photo = upscale_photo(rgb, options.upscale)
    else:
        photo = rgb if in_place or not found.faces else rgb.copy()
    for face, matrix in zip(restored, found.matrices, strict=True):
        moved = matrix if options.upscale == 1 else scaled_matrix(matrix, options.upscale)
        paste_face(photo, face, moved, blend=options.blend)
    return RestoredPhoto(photo, found.faces, found.crops, restored, found.matrices)


def select_faces(faces: "Sequence[Face]", rule: str, size: tuple[int, int]) -> "list[Face]":
    """Keep all faces, the one with the largest box, or the one nearest the centre.

    Args:
        faces: as found.
        rule: `all`, `largest` or `center`.
        size: height and width of the photo.
    """
    if rule == "all" or not faces:
        return list(faces)
    if rule == "largest":
        return [max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])))]
    centre = np.array([size[1] - 1, size[0] - 1]) / 2

    def distance(face: "Face") -> float:
        return float(np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - centre))

    return [min(faces, key=distance)]


def _square(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A crop of any size as the model takes it: its shorter side is padded with edge pixels, never stretched."""
    top, left, side = _padding(rgb)
    height, width, _ = rgb.shape
    borders = (top, side - height - top, left, side - width - left)
    square = np.asarray(cv2.copyMakeBorder(rgb, *borders, cv2.BORDER_REPLICATE), np.uint8)
    return _resized(square, SIZE, SIZE)


def _padding(rgb: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Rows above and columns left of the photo in its square, and the square's side."""
    height, width, _ = rgb.shape
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2, side


def _apply_aligned(
    rgb: NDArray[np.uint8],
    crop: NDArray[np.uint8],
    restored: NDArray[np.uint8],
    options: RestoreOptions,
) -> NDArray[np.uint8]:
    """The restored square at the input's own size times `upscale`; the padding is cut off again."""
    mixed = cv2.addWeighted(restored, options.blend, crop, 1 - options.blend, 0)
    top, left, side = _padding(rgb)
    scale = options.upscale
    out_side = round(side * scale)
    out = _resized(np.asarray(mixed, np.uint8), out_side, out_side)
    y, x, out_h, out_w = (round(v * scale) for v in (top, left, *rgb.shape[:2]))
    return np.ascontiguousarray(out[y : y + out_h, x : x + out_w])


def _check_output_size(rgb: NDArray[np.uint8], upscale: float) -> None:
    height, width, _ = rgb.shape
    if height * width * upscale**2 > MAX_OUTPUT_PIXELS:
        raise ImageError(
            "too_large",
            f"{width}x{height} enlarged {upscale:g} times passes {MAX_OUTPUT_PIXELS} pixels; "
            "choose a smaller --upscale",
        )


def _resized(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if rgb.shape[:2] == (height, width):
        return rgb
    how = cv2.INTER_AREA if height < rgb.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)
