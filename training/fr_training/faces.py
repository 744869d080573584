"""A corpus of generated FFHQ-aligned faces, each a pure function of its seed.

Seeds from `HELD_OUT_FROM` on are for evaluation; training refuses them. A corpus on disk is a folder of
shards `faces-<first seed>.npy` (uint8 [64, 512, 512, 3] RGB), beside each `faces-<first seed>.json` with the seeds
whose picture does not show exactly one face (about 1 %), and `manifest.json`: it can be made again anywhere from
the seeds alone.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fr_deploy.errors import NoInputError, ResourceError, UsageError
from fr_kernels.cache import cache_dir
from fr_training.generator import FaceGenerator, save_generator
from fr_training.rounded import is_rounded

HELD_OUT_FROM = 9_000_000
SHARD = 64
PSI_RANGE = (
    0.6,
    1.0,
)  # 27 to 30 degrees of dlib angle between two faces: as far apart as real people
WHEEL = "random-face==2021.7.21.1"
WHEEL_SHA256 = "e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5"


def generator_file() -> Path:
    """The converted generator; on first use its wheel (38 MB) is fetched by pip, checked and converted."""
    out = cache_dir() / "face-generator.safetensors"
    if not out.exists():
        with zipfile.ZipFile(wheel_from_pip(WHEEL, WHEEL_SHA256)) as wheel:
            names = [n for n in wheel.namelist() if n.startswith("random_face/data/")]
            wheel.extractall(cache_dir() / "wheels", names)
        save_generator(cache_dir() / "wheels" / "random_face" / "data", out)
    return out


def wheel_from_pip(requirement: str, sha256: str) -> Path:
    """Download one wheel without its dependencies, and check its digest.

    Raises:
        ResourceError: the digest differs; the file is left for inspection.
    """
    folder = cache_dir() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    stem = requirement.replace("==", "-").replace("-", "_", requirement.split("==")[0].count("-"))
    if not (found := list(folder.glob(f"{stem}-*.whl"))):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(folder),
            requirement,
        ]
        subprocess.run(command, check=True)
        found = list(folder.glob(f"{stem}-*.whl"))
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != sha256:
        raise ResourceError(
            f"{found[0]}: sha256 is {digest}, expected {sha256}; delete the file and run again"
        )
    return found[0]


def seed_noise(seed: int) -> tuple[NDArray[np.float32], float]:
    """The noise [512] and the truncation psi of one face, from its seed alone."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(512).astype(np.float32), float(rng.uniform(*PSI_RANGE))


@torch.inference_mode()
def faces_from_seeds(
    generator: FaceGenerator, seeds: list[int], size: int = 512
) -> NDArray[np.uint8]:
    """Generate faces.

    Args:
        seeds: one face each.
        size: side in pixels; 1024 is averaged down by area (the generator's own 1024 px show a faint wavelet grid).

    Returns:
        uint8 [N, size, size, 3] RGB.
    """
    device = generator.style_mean.device
    drawn = [seed_noise(seed) for seed in seeds]
    noise = torch.from_numpy(np.stack([d[0] for d in drawn])).to(device)
    psi = torch.tensor([[d[1]] for d in drawn], device=device, dtype=torch.float32)
    image = F.interpolate(generator(noise, psi).clamp(-1, 1), size=(size, size), mode="area")
    return ((image + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def make_corpus(
    out: Path,
    count: int,
    *,
    first_seed: int = 0,
    size: int = 512,
    batch: int = 4,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `count` faces (rounded up to whole shards) from consecutive seeds; a shard that exists is kept.

    The detector looks at every face; seeds that do not show exactly one are written down as rejected.

    Raises:
        UsageError: `first_seed` does not begin a shard.
    """
    if first_seed % SHARD:
        raise UsageError(
            f"first_seed is {first_seed}; it must be a multiple of {SHARD}, the shard's size"
        )
    out.mkdir(parents=True, exist_ok=True)
    generator: FaceGenerator | None = None
    firsts = range(first_seed, first_seed + count, SHARD)
    # Beside the generator: on a GPU that makes hundreds of faces a second, looking at each takes longer.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looking: list[Future[None]] = []
        for done, first in enumerate(firsts):
            path = out / f"faces-{first:08d}.npy"
            if not path.exists():
                generator = generator or FaceGenerator(generator_file()).to(device).eval()
                _write_shard(path, generator, first, size, batch)
            if not path.with_suffix(".json").exists():
                looking.append(pool.submit(_write_rejected, path, first))
            if on_progress:
                on_progress((done + 1) * SHARD, len(firsts) * SHARD)
        for each in looking:
            each.result()
    if generator is not None or not (out / "manifest.json").exists():
        _write_manifest(out, size)


def _write_manifest(out: Path, size: int) -> None:
    manifest = {
        "generator": WHEEL,
        "sha256": WHEEL_SHA256,
        "rounded": is_rounded(generator_file()),
        "psi": PSI_RANGE,
        "size": size,
        "shard": SHARD,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _write_shard(path: Path, generator: FaceGenerator, first: int, size: int, batch: int) -> None:
    seeds = list(range(first, first + SHARD))
    parts = [
        faces_from_seeds(generator, seeds[i : i + batch], size) for i in range(0, SHARD, batch)
    ]
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, np.concatenate(parts))
    part.replace(path)


def _write_rejected(path: Path, first: int) -> None:
    from fr_deploy.faces import FaceDetector

    detector = FaceDetector()
    # A face in the background counts from an eighth of the picture on; smaller ones train no one's taste.
    counts = [len(detector.detect(face, min_face=face.shape[0] // 8)) for face in np.load(path)]
    rejected = [first + i for i, count in enumerate(counts) if count != 1]
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"rejected": rejected}) + "\n")
    part.replace(path.with_suffix(".json"))


@dataclass(frozen=True)
class FaceCorpus:
    """A corpus opened for reading: `corpus[i]` is uint8 [S, S, 3]; `seeds[i]` its seed."""

    shards: dict[int, NDArray[np.uint8]]
    """By first seed."""
    seeds: list[int]

    @staticmethod
    def open(folder: Path, *, training: bool = True) -> "FaceCorpus":
        """Map all shards of `folder`.

        Raises:
            NoInputError: no shard there.
            UsageError: `training` and a held-out seed is among them.
        """
        paths = sorted(folder.glob("faces-*.npy"))
        if not paths:
            raise NoInputError(
                f"{folder}: no faces-*.npy; make them with: fr-deploy data faces -o {folder}"
            )
        shards = {int(path.stem[6:]): np.load(path, mmap_mode="r") for path in paths}
        if training and max(shards) + SHARD > HELD_OUT_FROM:
            raise UsageError(
                f"{folder}: seed {max(shards)} is held out (>= {HELD_OUT_FROM}) and never trained on"
            )
        lists = [path.with_suffix(".json") for path in paths]
        kept = [json.loads(path.read_text())["rejected"] for path in lists if path.exists()]
        rejected = {seed for seeds in kept for seed in seeds}
        every = (first + i for first, shard in shards.items() for i in range(len(shard)))
        return FaceCorpus(shards, [seed for seed in every if seed not in rejected])

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        seed = self.seeds[index]
        first = seed // SHARD * SHARD
        return self.shards[first][seed - first]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[i] for i in range(len(self)))
