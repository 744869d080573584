"""The torch backend on a GPU: CUDA graphs, batches that do not fit, and results that depend on their face alone.

Run alone: `pytest -m gpu`.
"""

import pytest
import torch
from torch import Tensor

from fr_deploy.bundle import load_graph
from fr_deploy.runtime.devices import DtypeName, choose_place
from fr_deploy.runtime.runner import Runner
from fr_deploy.runtime.torch_backend import Mode, TorchBackend
from tests_support import psnr

pytestmark = pytest.mark.gpu
BUCKETS = (1, 2, 4, 8, 16, 32)


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")


def backend(mode: Mode = "graphs", dtype: DtypeName = "fp16") -> TorchBackend:
    return TorchBackend(load_graph("lafr-mini"), choose_place("cuda", dtype), mode)


def drawn(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 512, 512, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("bucket", BUCKETS)
def test_a_replayed_graph_is_the_eager_run(bucket: int) -> None:
    recorded, eager = backend(), backend("eager")
    for seed in range(3):
        faces = drawn(bucket, seed)
        assert torch.equal(recorded.run(faces), eager.run(faces))
    assert recorded._captured[bucket] is not None, "it was not recorded"


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "bf16"])
@pytest.mark.parametrize("bucket", [2, 8, 32])
def test_within_a_bucket_neighbours_and_position_change_no_bit(
    bucket: int, dtype: DtypeName
) -> None:
    run, face = backend(dtype=dtype).run, drawn(1)
    expected = run(torch.cat([face, drawn(bucket - 1, seed=1)]))[0]
    for position in {0, 1, bucket // 2, bucket - 1}:
        shared = drawn(bucket, seed=2)
        shared[position] = face[0]
        assert torch.equal(run(shared)[position], expected)


def test_with_a_fixed_bucket_a_face_alone_is_the_face_among_others() -> None:
    runner, faces = Runner(backend(), fixed=8), drawn(19)
    whole = runner(faces)
    for i in (0, 7, 8, 18):
        assert torch.equal(runner(faces[i : i + 1])[0], whole[i])


def test_across_buckets_and_against_the_cpu() -> None:
    faces = drawn(8)
    exact = TorchBackend(load_graph("lafr-mini")).run(faces)
    run32, run16 = backend(dtype="fp32").run, backend().run
    single32, single16 = (torch.cat([r(f) for f in faces.split(1)]) for r in (run32, run16))
    assert psnr(run32(faces), exact) >= 50
    assert psnr(run32(faces), single32) >= 50
    assert psnr(run16(faces), single16) >= min(psnr(run16(faces), exact), psnr(single16, exact))


def test_memory_that_does_not_suffice_halves_the_batch_and_loses_nothing() -> None:
    faces = drawn(32)
    expected = Runner(backend("eager"), batch=4)(faces)
    made = backend("eager")
    # What a batch of 8 takes beyond the weights, and a quarter: 32 and 16 cannot fit.
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made.run(faces[:8])
    allowed = before + 1.25 * (torch.cuda.max_memory_allocated() - before)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        runner = Runner(made)
        assert psnr(runner(faces), expected) >= 40
        assert runner.ceiling <= 8
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
