"""Score a restorer on degraded faces against doing nothing and two classical filters.

Faces are degraded with a seed that depends only on (level, index), so that every method and every
model sees the same inputs. All metrics compare with the clean face.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr_deploy.errors import UsageError
from fr_kernels.cache import cache_dir
from fr_training.degrade import degrade, lookup
from fr_training.faces import HELD_OUT_FROM, FaceCorpus, generator_file, make_corpus
from fr_training.metrics import RESAMPLES, psnr, ssim
from fr_training.outside import outside_faces
from fr_training.rounded import require_exact
from fr_training.verdict import GOALS, METRICS, MUSTS, Row, judge

Images = NDArray[np.uint8]
Restore = Callable[[Images], Images]
Scores = dict[str, list[float]]

LEVELS = ("mild", "vqfr-v1", "vqfr-v2", "hq")
"""The last one hands the model clean faces: what its autoencoder alone costs."""
SCORES_VERSION = "1"
"""Raise when a filter or a metric changes: kept scores of the methods are then made anew."""


def bilateral(face: Images) -> Images:
    """OpenCV's bilateral filter: 9 px, sigma 50 in colour, 5 px in space.

    Of five settings the one with the least lpips_hed over four held-out faces at three levels.
    """
    return np.asarray(cv2.bilateralFilter(face, 9, 50, 5), np.uint8)


def nlm(face: Images) -> Images:
    """OpenCV's non-local means in colour: h = 10, 7 px patches in 21 px windows.

    Of h = 3, 5 and 10 the one with the least lpips_hed over four held-out faces at three levels.
    """
    return np.asarray(cv2.fastNlMeansDenoisingColored(face, None, 10, 10, 7, 21), np.uint8)


METHODS: dict[str, Callable[[Images], Images]] = {
    "input": lambda face: face,
    "bilateral": bilateral,
    "nlm": nlm,
}


class Perceptual(Protocol):
    """The part of `LpipsHed` used here."""

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of [B, 3, H, W] RGB in [0, 1]."""
        ...

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Distances [B] of two feature lists."""
        ...


@dataclass(frozen=True)
class Judge:
    """The networks behind lpips_hed and deg_dlib.

    Attributes:
        embed: uint8 [N, S, S, 3] to float32 [N, 128].
        angle: two embeddings [N, 128] to degrees [N].
        name: kept scores are filed under it.
    """

    perceptual: Perceptual
    embed: Callable[[Images], NDArray[np.float32]]
    angle: Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
    name: str
    device: str = "cpu"

    @staticmethod
    def load(device: str = "cpu") -> "Judge":
        """The real networks; fetches their weights on first use.

        Raises:
            UsageError: the weights of lpips_hed are rounded ones.
        """
        from fr_deploy.faces import FaceEmbedder, deg_dlib
        from fr_training.perceptual import LpipsHed, perceptual_file

        require_exact(perceptual_file())
        return Judge(
            LpipsHed().to(device).eval(), FaceEmbedder(device).embed, deg_dlib, "hed-dlib", device
        )

    @torch.inference_mode()
    def score(self, clean: Images, made: Mapping[str, Images]) -> dict[str, Scores]:
        """All metrics of every picture list in `made`; the clean faces' features are computed once.

        Args:
            clean: uint8 [N, S, S, 3].
            made: per name, uint8 [N, S, S, 3].
        """
        scores: dict[str, Scores] = {name: {m: [] for m in METRICS} for name in made}
        embedded = self.embed(clean)
        for name, images in made.items():
            scores[name]["deg_dlib"] = self.angle(embedded, self.embed(images)).tolist()
        for i, face in enumerate(clean):
            features = self.perceptual.features(self._tensor(face))
            for name, images in made.items():
                other = self.perceptual.features(self._tensor(images[i]))
                distance = float(self.perceptual.distance(features, other))
                scores[name]["lpips_hed"].append(distance)
                scores[name]["psnr"].append(psnr(images[i], face))
                scores[name]["ssim"].append(ssim(images[i], face))
        return scores

    def _tensor(self, face: Images) -> Tensor:
        channels_first = np.ascontiguousarray(face.transpose(2, 0, 1))
        return torch.from_numpy(channels_first).to(self.device)[None].float() / 255


def degraded(faces: Images, level: str) -> Images:
    """Faces [N, S, S, 3] at one level, each with the seed crc32("<level>/<index>"); "hq": as is."""
    if level == "hq":
        return faces
    seeds = [zlib.crc32(f"{level}/{i}".encode()) for i in range(len(faces))]
    return np.stack([degrade(f, level, s) for f, s in zip(faces, seeds, strict=True)])


def evaluate(
    restore: Restore | None,
    sets: Mapping[str, Images],
    levels: Sequence[str] = LEVELS,
    methods: Sequence[str] = tuple(METHODS),
    *,
    networks: Judge | None = None,
    on_level: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Score `methods` and, if given, the model on every set at every level.

    Scores of `methods` do not depend on the model: they are kept in `cache_dir()/eval`.

    Args:
        restore: uint8 [N, S, S, 3] RGB to the same; None scores the methods alone.
        sets: per name, clean faces uint8 [N, S, S, 3] RGB.
        levels: names of `DEGRADATIONS`, or "hq", where only the model is scored.
        methods: names of `METHODS`; gains need "input" among them.
        networks: the metric networks; loaded when None.
        on_level: called with the rows of each set and level as they come.

    Raises:
        UsageError: unknown method or level, or the model returns another shape or type.
    """
    if unknown := set(methods) - set(METHODS):
        raise UsageError(f"methods {sorted(unknown)} are unknown; choose from {', '.join(METHODS)}")
    for level in set(levels) - {"hq"}:
        lookup(level)
    networks = networks or Judge.load()
    rows: list[Row] = []
    for set_name, clean in sets.items():
        for level in levels:
            scores = _score_level(restore, clean, level, methods, networks)
            new = [Row(set_name, level, method, values) for method, values in scores.items()]
            judge(new)
            rows += new
            if on_level:
                on_level(new)
    return rows


def _score_level(
    restore: Restore | None,
    clean: Images,
    level: str,
    methods: Sequence[str],
    networks: Judge,
) -> dict[str, Scores]:
    faces = degraded(clean, level)
    methods = [] if level == "hq" else methods
    files = {method: _kept(method, level, clean, faces, networks) for method in methods}
    missing = [method for method, file in files.items() if not file.exists()]
    made = {method: np.stack([METHODS[method](face) for face in faces]) for method in missing}
    if restore is not None:
        made["model"] = _restored(restore, faces)
    scores = networks.score(clean, made)
    for method in missing:
        write_json(files[method], scores[method])
    kept = {m: json.loads(f.read_text()) for m, f in files.items()}
    return kept | {name: scores[name] for name in made if name == "model"}


def _kept(method: str, level: str, clean: Images, faces: Images, networks: Judge) -> Path:
    """Where a method's scores lie: named by everything they depend on."""
    digest = hashlib.sha256(clean.tobytes() + faces.tobytes()).hexdigest()[:16]
    name = f"{method}-{level}-{len(clean)}-{digest}-{networks.name}-v{SCORES_VERSION}.json"
    return cache_dir() / "eval" / name


def _restored(restore: Restore, faces: Images) -> Images:
    made = restore(faces.copy())
    if made.shape != faces.shape or made.dtype != np.uint8:
        raise UsageError(
            f"the model returned {made.dtype} {list(made.shape)} for uint8 {list(faces.shape)}"
        )
    return made


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def held_out_faces(count: int) -> tuple[Images, list[str]]:
    """The first `count` one-face pictures among the seeds that no training sees.

    Returns:
        uint8 [count, 512, 512, 3] RGB, and their seeds as names.

    Raises:
        UsageError: the generator's weights are rounded ones, whose faces differ.
    """
    folder = cache_dir() / "heldout"
    if not folder.exists():
        require_exact(generator_file())
    make_corpus(folder, count + count // 8, first_seed=HELD_OUT_FROM)  # about 1 % are rejected
    corpus = FaceCorpus.open(folder, training=False)
    return np.stack([corpus[i] for i in range(count)]), [str(s) for s in corpus.seeds[:count]]


def run_eval(
    restore: Restore | None,
    *,
    generated: int = 32,
    outside: bool = True,
    levels: Sequence[str] = LEVELS,
    out: Path,
    on_level: Callable[[list[Row]], None] | None = None,
) -> dict[str, Any]:
    """Evaluate on held-out generated faces and on faces from outside the generator.

    Args:
        generated: how many held-out faces; made and kept on first use.
        outside: also the 22 outside faces.
        out: JSON file with the returned report.

    Returns:
        `settings`, and `rows` as `Row.to_json` gives them, every per-face number included.

    Raises:
        UsageError: see `evaluate`.
    """
    faces, seeds = held_out_faces(generated)
    sets, names = {"generated": faces}, {"generated": seeds}
    if outside:
        sets["outside"], names["outside"] = outside_faces()
    rows = evaluate(restore, sets, levels, on_level=on_level)
    settings = {
        "faces": names,
        "levels": {level: vars(lookup(level)) for level in levels if level != "hq"},
        "degradation_seed": 'crc32("<level>/<index>")',
        "lpips_hed": "LPIPS v0.1 heads over HED's VGG16; not comparable with published LPIPS",
        "deg_dlib": "degrees between dlib embeddings; not comparable with ArcFace degrees",
        "interval": f"95 % percentile bootstrap, {RESAMPLES} resamples of faces",
        "musts": {level: vars(bar) for level, bar in MUSTS.items()},
        "goals": {level: vars(bar) for level, bar in GOALS.items()},
        "opencv": cv2.__version__,
        "torch": torch.__version__,
    }
    report = {"settings": settings, "rows": [row.to_json() for row in rows]}
    write_json(out, report)
    return report
