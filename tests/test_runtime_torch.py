"""The torch backend: places, modes, memory, and results that do not depend on what shares the batch."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fr_deploy.bundle import load_graph
from fr_deploy.errors import ResourceError, UsageError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import random_pictures
from fr_deploy.runtime.backend import OutOfMemoryError
from fr_deploy.runtime.devices import DtypeName, Place, choose_place
from fr_deploy.runtime.runner import Runner
from fr_deploy.runtime.select import Request, load_backend
from fr_deploy.runtime.torch_backend import TorchBackend
from tests_support import psnr

TOY = PRESETS["lafr-toy"]
CPU = torch.device("cpu")
DTYPES: tuple[DtypeName, ...] = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module")
def model() -> LafrModel:
    torch.manual_seed(0)
    return LafrModel(TOY).eval().requires_grad_(False)


def backend(model: LafrModel, dtype: DtypeName = "fp32") -> TorchBackend:
    return TorchBackend(RestorationGraph.of(model), Place(CPU, dtype))


def drawn(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, TOY.size, TOY.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("bucket", "dtype"), [*((n, "fp32") for n in (2, 4, 8)), (4, "fp16"), (4, "bf16")]
)
def test_within_a_bucket_neighbours_and_position_change_no_bit(
    model: LafrModel, dtype: DtypeName, bucket: int
) -> None:
    run = backend(model, dtype).run
    face, others = drawn(1), drawn(bucket - 1, seed=1)
    expected = run(torch.cat([face, others]))[0]
    for position in range(bucket):
        for seed in (2, 3):
            shared = drawn(bucket, seed=seed)
            shared[position] = face[0]
            assert torch.equal(run(shared)[position], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_with_a_fixed_bucket_a_face_alone_is_the_face_among_others(
    model: LafrModel, dtype: DtypeName
) -> None:
    runner = Runner(backend(model, dtype), fixed=4)
    faces = drawn(11)
    whole = runner(faces)
    for i in range(11):
        assert torch.equal(runner(faces[i : i + 1])[0], whole[i])
    assert torch.equal(runner(faces.flip(0)).flip(0), whole)


def across(run: Callable[[Tensor], Tensor], faces: Tensor, buckets: Sequence[int]) -> list[Tensor]:
    """The same faces in batches of each size."""
    return [torch.cat([run(part) for part in faces.split(n)]) for n in buckets]


def test_across_buckets_float32_is_90_decibels_apart(model: LafrModel) -> None:
    for one, other in pairwise(across(backend(model).graph.picture, drawn(8), (1, 2, 4, 8))):
        assert psnr(one, other) >= 90


@pytest.mark.slow
def test_across_buckets_float16_is_no_further_apart_than_it_is_from_float32() -> None:
    """Of trained weights: where random ones put two codes equally near, each rounding chooses another."""
    faces = random_pictures(512, 2)
    exact, half = (TorchBackend(load_graph("lafr-mini"), Place(CPU, dtype)) for dtype in DTYPES[:2])
    assert psnr(*across(exact.graph.picture, faces, (1, 2))) >= 90
    (wide,) = across(exact.run, faces, (1,))
    alone, together = across(half.run, faces, (1, 2))
    assert psnr(alone, together) >= min(psnr(alone, wide), psnr(together, wide))


def test_memory_of_the_cpu_that_does_not_suffice_is_named(
    model: LafrModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(model)

    def full(_: Tensor) -> Tensor:
        return torch.empty(2**62, dtype=torch.uint8)

    monkeypatch.setattr(made, "_call", full)
    with pytest.raises(
        OutOfMemoryError, match="2 faces of 64 px do not fit into the memory of cpu"
    ):
        made.run(drawn(2))


def test_an_error_that_is_not_of_memory_passes(
    model: LafrModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = backend(model)

    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(made, "_call", broken)
    with pytest.raises(RuntimeError, match="broken"):
        made.run(drawn(1))


def test_places() -> None:
    if torch.cuda.is_available():
        assert choose_place() == Place(torch.device("cuda", 0), "fp16")
    else:
        assert choose_place() == Place(CPU, "fp32")
        with pytest.raises(ResourceError, match=r"auto: .*(built for CPUs|no NVIDIA GPU)"):
            choose_place(require_gpu=True)
        with pytest.raises(ResourceError, match="cuda:1: "):
            choose_place("cuda:1")
    assert choose_place("cpu", "bf16") == Place(CPU, "bf16")
    with pytest.raises(UsageError, match="--require-gpu together with --device cpu"):
        choose_place("cpu", require_gpu=True)
    for wrong in ("gpu", "cuda:x", "cpu:1"):
        with pytest.raises(
            UsageError, match=f"device is '{wrong}'; allowed: auto, cpu, cuda, cuda:N"
        ):
            choose_place(wrong)
    with pytest.raises(UsageError, match="dtype is 'int8'; allowed: auto, fp32, fp16, bf16"):
        choose_place("cpu", "int8")


def test_wrong_backends(model: LafrModel) -> None:
    with pytest.raises(UsageError, match="CUDA graphs need a GPU, not cpu"):
        TorchBackend(RestorationGraph.of(model), Place(CPU, "fp32"), "graphs")
    with pytest.raises(UsageError, match="backend is 'trt'; allowed: auto, torch-eager"):
        load_backend("lafr-mini", Request(backend="trt"))
    with pytest.raises(UsageError, match="leave out --dtype fp16, --require-gpu"):
        Request(dtype="fp16", require_gpu=True).refuse_for("a sampled latent", None)


@pytest.mark.slow
def test_compiled_is_eager() -> None:
    """In a process of its own: inductor starts threads. Skipped where there is no C++ compiler."""
    from shutil import which

    if which("c++") is None and which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    code = (
        "import torch; from fr_deploy.models.lafr import LafrModel\n"
        "from fr_deploy.models.presets import PRESETS\n"
        "from fr_deploy.models.restorer import RestorationGraph\n"
        "from fr_deploy.runtime.torch_backend import TorchBackend\n"
        "torch.manual_seed(0); m = LafrModel(PRESETS['lafr-toy']).eval()\n"
        "x = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)\n"
        "a, b = (TorchBackend(RestorationGraph.of(m), None, k).run(x) for k in ('eager', 'compile'))\n"
        "print(int((a.int() - b.int()).abs().max()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    assert done.stdout.strip() in ("0", "1"), done.stderr
