"""Training batches as a pure function of (corpus, recipe, seed, image number)."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fr_training.degrade import degrade
from fr_training.faces import FaceCorpus
from fr_training.presets import Recipe


class Batch(NamedTuple):
    """Clean and degraded crops, float32 [B, 3, crop, crop] in [-1, 1], and what their damage asks for."""

    clean: Tensor
    degraded: Tensor
    emphasis: Tensor
    """Float32 [B]: factor of the perceptual loss on each crop."""


def crops_at(
    corpus: FaceCorpus, recipe: Recipe, seed: int, image: int
) -> tuple[list[NDArray[np.uint8]], float]:
    """The crops numbered `image` .. `image + crops_per_face - 1`: uint8 [crop, crop, 6], clean | degraded.

    With them the factor of the perceptual loss that their degradation has.
    """
    rng = np.random.default_rng([seed, image])
    clean = np.ascontiguousarray(corpus[int(rng.integers(len(corpus)))][:, :: rng.choice((1, -1))])
    if rng.random() < recipe.recolour:
        clean = np.ascontiguousarray(clean[..., rng.permutation(3)])
    if recipe.stage == "vae":
        both, emphasis = np.concatenate([clean, clean], 2), 1.0
    else:
        names, shares, factors = zip(*recipe.levels, strict=True)
        level = str(rng.choice(names, p=np.array(shares) / sum(shares)))
        emphasis = factors[names.index(level)]
        both = np.concatenate([clean, degrade(clean, level, int(rng.integers(2**31)))], 2)
    room = clean.shape[0] - recipe.crop + 1
    corners = rng.integers(0, room, (recipe.crops_per_face, 2)) // 8 * 8
    return [both[y : y + recipe.crop, x : x + recipe.crop] for y, x in corners], emphasis


def batch_at(corpus: FaceCorpus, recipe: Recipe, seed: int, image: int) -> Batch:
    """The batch whose first crop is number `image`."""
    firsts = range(image, image + recipe.batch, recipe.crops_per_face)
    crops: list[NDArray[np.uint8]] = []
    emphasis: list[float] = []
    for first in firsts:
        cut, factor = crops_at(corpus, recipe, seed, first)
        crops += cut
        emphasis += [factor] * len(cut)
    both = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    clean, degraded = both.contiguous(memory_format=torch.channels_last).split(3, 1)
    return Batch(clean.contiguous(), degraded.contiguous(), torch.tensor(emphasis))


def batches(
    corpus: FaceCorpus, recipe: Recipe, seed: int, start: int, *, workers: int = 2
) -> Iterator[Batch]:
    """Endless batches from image number `start`, prepared ahead by threads (OpenCV frees the GIL)."""
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[Future[Batch]] = []
        image = start
        while True:
            while len(ahead) < 2 * workers:
                ahead.append(pool.submit(batch_at, corpus, recipe, seed, image))
                image += recipe.batch
            yield ahead.pop(0).result()
