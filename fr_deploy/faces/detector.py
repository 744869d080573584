"""Find faces in a photo of any size, at any of the four right-angled turns.

The first look searches the photo at the sizes of `search_levels`. Each find is then turned upright,
brought to one size and looked at again, with its mirror image, until its points rest (at most three
times): that gives its score and its landmarks. Points of one face, drawn at other sizes, places and
angles, then differ by 0.5 to 1.3 % of the distance between the eyes (median; at most 4 %). By the
first look alone it is 3 % upright and 5 % at 25 degrees for large faces, 8 and 15 % at 40 px.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import UsageError
from fr_deploy.faces.face import FFHQ_TEMPLATE_512, Face
from fr_deploy.faces.geometry import (
    Affine,
    apply,
    compose,
    cut,
    fit_similarity,
    invert,
    scaling,
    translation,
)
from fr_deploy.faces.retinaface import MEAN_RGB, Candidates, RetinaFace
from fr_deploy.faces.search import Level, resized, search_levels, tile_corners, turn, uncut

# Of 40 faces of 40 px, tilted by up to 45 degrees, 38 reach this at the first look, 30 reach 0.5;
# the closer looks refuse the rest as well.
CANDIDATE = 0.1
LOOK_SIDE = 256  # covers 1.5 sides of an FFHQ crop; the box of the face is then about 105 px
LOOK_TEMPLATE = (FFHQ_TEMPLATE_512 - 255.5) / 3 + np.array((127.5, 113.5), np.float32)
LOOK_BATCH = 8
LOOKS = 3
SETTLED = 0.02  # of the distance between the eyes
MIRRORED = [1, 0, 2, 4, 3]  # where the landmarks of a mirrored face stand in the list
SAME_UNION, SAME_INSIDE = 0.4, 0.8
SAME_MIDDLE = 0.5  # of the distance between the eyes


class FaceDetector:
    """RetinaFace-MobileNet-0.25 with a second look, on the CPU.

    Args:
        confidence: lowest score returned, 0 to 1. At 0.95 it finds 60 of 60 faces degraded by the
            level `vqfr-v2` of fr_training, and one false face in 24 pictures without any.
        threads: of the network; None leaves it to onnxruntime (all cores).
    """

    def __init__(self, confidence: float = 0.95, threads: int | None = None) -> None:
        if not 0 < confidence < 1:
            raise UsageError(f"confidence is {confidence}; give a number between 0 and 1")
        self.confidence = confidence
        self._network = RetinaFace(threads)

    def detect(
        self, rgb: NDArray[np.uint8], *, min_face: int = 24, rotations: Sequence[int] = (0,)
    ) -> list[Face]:
        """Find the faces of a photo.

        Args:
            rgb: uint8 [H, W, 3].
            min_face: smallest face wanted: the longer side of its box, photo pixels, at least 10.
            rotations: degrees by which the photo is turned clockwise before a search, of 0, 90,
                180, 270. One search finds faces up to about 45 degrees off upright.

        Returns:
            each face once, sorted by the left edge of its box; an empty list when there is none.

        Raises:
            UsageError: an argument lies outside its range.
        """
        if min_face < 10:
            raise UsageError(f"min_face is {min_face}; faces below 10 px cannot be found")
        if not rotations or not set(rotations) <= {0, 90, 180, 270}:
            raise UsageError(f"rotations is {tuple(rotations)}; give some of 0, 90, 180, 270")
        levels = search_levels(rgb.shape[0], rgb.shape[1], min_face)
        pictures = [(level, resized(rgb, level.scale)) for level in levels]
        faces: list[Face] = []
        for rotation in rotations:
            found = [f for level, image in pictures for f in self._search(image, level, rotation)]
            found = [f for f in found if max(f.box[2:] - f.box[:2]) >= min_face]
            faces += self._settle(rgb, suppress(found))
        faces = suppress(face for face in faces if face.score >= self.confidence)
        return sorted(faces, key=lambda face: float(face.box[0]))

    def _search(self, image: NDArray[np.uint8], level: Level, rotation: int) -> list[Face]:
        turned = np.rot90(image, -rotation // 90)
        height, width = turned.shape[:2]
        to_photo = invert(
            compose(turn(rotation, image.shape[0], image.shape[1]), scaling(level.scale))
        )
        faces: list[Face] = []
        for x, y in tile_corners(height, width, level):
            part = turned[y : y + level.square, x : x + level.square]
            square = np.full((level.square, level.square, 3), MEAN_RGB, np.uint8)
            square[: part.shape[0], : part.shape[1]] = part
            found = self._network(square[None], CANDIDATE)[0]
            keep = uncut(found.boxes, (x, y), (width, height), level.square)
            faces += _faces(found, keep, compose(to_photo, translation(x, y)))
        return faces

    def _settle(self, rgb: NDArray[np.uint8], faces: list[Face]) -> list[Face]:
        settled: list[Face] = []
        for _ in range(LOOKS):
            seen = self._look_again(rgb, faces)
            still = [_moved(a, b) <= SETTLED for a, b in zip(faces, seen, strict=True)]
            settled += [face for face, done in zip(seen, still, strict=True) if done]
            faces = [face for face, done in zip(seen, still, strict=True) if not done]
        return settled + faces

    def _look_again(self, rgb: NDArray[np.uint8], faces: list[Face]) -> list[Face]:
        seen: list[Face] = []
        for start in range(0, len(faces), LOOK_BATCH):
            batch = faces[start : start + LOOK_BATCH]
            maps = [fit_similarity(face.landmarks, LOOK_TEMPLATE) for face in batch]
            # A mirrored border would complete half a face to a whole one with wrong points.
            crops = [cut(rgb, m, LOOK_SIDE, MEAN_RGB) for m in maps]
            looks = self._network(np.stack(crops + [c[:, ::-1] for c in crops]), CANDIDATE)
            pairs = zip(looks[: len(batch)], looks[len(batch) :], strict=True)
            for face, matrix, (look, mirror) in zip(batch, maps, pairs, strict=True):
                seen.append(_seen(face, matrix, look, mirror))
        return seen


def _moved(face: Face, seen: Face) -> float:
    """How far the points of a face moved on average, in distances between its eyes."""
    if not seen.score:
        return 0.0
    steps = np.linalg.norm(face.landmarks - seen.landmarks, axis=1)
    return float(steps.mean()) / _eye_distance(seen)


def suppress(faces: Iterable[Face]) -> list[Face]:
    """Keep of each group of finds of one face the one with the best score.

    Two finds are one face when their boxes share more than 0.4 of their union or 0.8 of the smaller
    one, or when their points lie around one middle: a box of half a face grows whole points on the
    closer looks (4 of the 16-face sheets of openpeople had such a seventeenth).
    """
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if not any(_same_box(face.box, other.box) or _same_middle(face, other) for other in kept):
            kept.append(face)
    return kept


def _same_box(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    areas = float(np.prod(a[2:] - a[:2])), float(np.prod(b[2:] - b[:2]))
    return common > SAME_UNION * (sum(areas) - common) or common > SAME_INSIDE * min(areas)


def _same_middle(a: Face, b: Face) -> bool:
    eyes = max(_eye_distance(a), _eye_distance(b))
    apart = np.linalg.norm(a.landmarks.mean(0) - b.landmarks.mean(0))
    return float(apart) < SAME_MIDDLE * eyes


def _eye_distance(face: Face) -> float:
    return float(np.linalg.norm(face.landmarks[0] - face.landmarks[1])) + 1e-6


def _faces(found: Candidates, keep: NDArray[np.bool_], to_photo: Affine) -> list[Face]:
    corners = apply(to_photo, found.boxes[keep].reshape(-1, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    points = apply(to_photo, found.landmarks[keep]).astype(np.float32)
    scores = found.scores[keep].tolist()
    return [Face(box, five, p) for box, five, p in zip(boxes, points, scores, strict=True)]


def _seen(face: Face, to_look: Affine, look: Candidates, mirror: Candidates) -> Face:
    """The face as the second look saw it; with score 0 when it saw none there, or none mirrored."""
    flipped = mirror.landmarks[:, MIRRORED] * np.array((-1, 1)) + np.array((LOOK_SIDE - 1, 0))
    seen = [_central(points, c.scores) for points, c in ((look.landmarks, look), (flipped, mirror))]
    if seen[0] is None or seen[1] is None:
        return replace(face, score=0.0)
    (points, score), (others, other) = seen[0], seen[1]
    landmarks = apply(invert(to_look), (points + others) / 2).astype(np.float32)
    return replace(face, landmarks=landmarks, score=(score + other) / 2)


def _central(
    landmarks: NDArray[np.floating], scores: NDArray[np.float32]
) -> tuple[NDArray[np.floating], float] | None:
    away = np.abs(landmarks.mean(1) - LOOK_TEMPLATE.mean(0)).max(1)
    central = np.where(away < LOOK_SIDE / 8, scores, 0)
    if not central.any():
        return None
    best = int(central.argmax())
    return landmarks[best], float(scores[best])
