"""Batches through a backend: buckets, a fixed bucket, and memory that does not suffice; nothing is lost."""

import logging

import pytest
import torch
from torch import Tensor

from fr_deploy.errors import ResourceError, UsageError
from fr_deploy.runtime.backend import OutOfMemoryError
from fr_deploy.runtime.runner import Runner


class Invert:
    """255 - x, for at most `fits` faces at once."""

    name, device, dtype, size, limit = "invert", "cpu", "fp32", 4, 32

    def __init__(self, fits: int = 32) -> None:
        self.fits, self.batches = fits, list[int]()

    def run(self, faces: Tensor) -> Tensor:
        if len(faces) > self.fits:
            raise OutOfMemoryError(f"{len(faces)} faces do not fit.")
        self.batches.append(len(faces))
        return 255 - faces

    def close(self) -> None:
        pass


def drawn(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 4, 4, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [
        (0, 32, []),
        (1, 32, [1]),
        (13, 32, [8, 4, 1]),
        (75, 32, [32, 32, 8, 2, 1]),
        (9, 6, [4, 4, 1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_full_buckets_and_no_padding(count: int, batch: int, expected: list[int]) -> None:
    backend, faces = Invert(), drawn(count)
    assert torch.equal(Runner(backend, batch=batch)(faces), 255 - faces)
    assert backend.batches == expected


def test_a_fixed_bucket_pads_every_batch() -> None:
    backend, faces = Invert(), drawn(7)
    assert torch.equal(Runner(backend, fixed=3)(faces), 255 - faces)
    assert backend.batches == [3, 3, 3]


def test_too_little_memory_halves_the_batch_and_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend, faces = Invert(fits=3), drawn(21)
    runner = Runner(backend)
    with caplog.at_level(logging.WARNING, logger="fr_deploy"):
        assert torch.equal(runner(faces), 255 - faces)
    # 16, 8 and 4 do not fit; 2 do.
    assert [record.getMessage() for record in caplog.records] == [
        f"{n} faces do not fit. Going on with batches of {n // 2}" for n in (16, 8, 4)
    ]
    assert backend.batches == [2] * 10 + [1]
    caplog.clear()
    assert torch.equal(runner(faces), 255 - faces)
    assert not caplog.records


def test_memory_that_fits_nothing_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(
        ResourceError, match="Not even one face fits; free memory, or use --device cpu"
    ):
        Runner(Invert(fits=0))(drawn(2))
    with pytest.raises(ResourceError, match="never split; choose a smaller one: --fixed-bucket 4"):
        Runner(Invert(fits=4), fixed=8)(drawn(2))


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="batch is 0"):
        Runner(Invert(), batch=0)
    with pytest.raises(UsageError, match="fixed bucket is 33; invert takes up to 32"):
        Runner(Invert(), fixed=33)
