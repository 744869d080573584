"""csrc/nearest_code.cu: its indexing, barriers and arithmetic run on the CPU; compiled: test_kernels_aot_cuda.py."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fr_kernels.codebook.reference import distances, nearest_index
from fr_kernels.sources import cuda_source, cuda_source_names

HOST = """
#include "cuda_on_host.h"
#include "nearest_code.cu"
extern "C" void run_f32(const float* f, const float* c, int* index, int n, int k, int d) {
    launch((n + 63) / 64, 128, [=] { nearest_code_f32(f, c, index, n, k, d); });
}
extern "C" void run_f16(const unsigned short* f, const unsigned short* c, int* index, int n, int k, int d) {
    launch((n + 63) / 64, 128, [=] { nearest_code_f16(f, c, index, n, k, d); });
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "nearest_code.cu").write_text(cuda_source("nearest_code"))
    (folder / "host.cpp").write_text(HOST)
    include = f"-I{Path(__file__).parent}"
    # -ffp-contract=fast: the GPU fuses multiply and add, too.
    flags = ["-std=c++20", "-O1", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", include]
    command = [compiler, *flags, "host.cpp", "-o", "host.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "host.so"))


def _nearest(
    host: ctypes.CDLL, features: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's int32 [N], and what it wrote beyond its end."""
    run = host.run_f32 if features.dtype == torch.float32 else host.run_f16
    (n, d), k = features.shape, len(codebook)
    index = torch.full((n + 64,), -7, dtype=torch.int32)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (features, codebook, index)]
    run(*pointers, n, k, d)
    return index[:n], index[n:]


# Odd sizes on each side of a tile, one code, one feature, one dimension, and two tiles of everything.
SHAPES = [(1, 1, 1), (64, 64, 16), (65, 63, 17), (3, 200, 64), (130, 129, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_give_the_reference_with_ties_to_the_lowest(
    host: ctypes.CDLL, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """Sums of small whole numbers are exact in fp32, so every index and every tie must agree."""
    n, k, d = shape
    generator = torch.Generator().manual_seed(n * k + d)
    features = torch.randint(-2, 3, (n, d), generator=generator).to(dtype)
    codebook = torch.randint(-2, 3, (k, d), generator=generator).to(dtype)
    codebook[k // 2 :] = codebook[: k - k // 2].clone()  # each code of the second half is a tie
    index, beyond = _nearest(host, features, codebook)
    exact = distances(features.double(), codebook.double())
    lowest = (exact == exact.min(1, keepdim=True).values).int().argmax(1)
    assert index.tolist() == lowest.tolist()
    assert beyond.eq(-7).all()


def test_real_numbers_are_as_near_as_with_the_reference(host: ctypes.CDLL) -> None:
    """Excess distance, in fp64, of the chosen code: at most 2 x (the eager fp32 version's + rounding band)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(192, 64, generator=generator)
    codebook = torch.randn(150, 64, generator=generator)
    exact = distances(features.double(), codebook.double())
    least = exact.min(1).values

    def excess(index: torch.Tensor) -> float:
        return float((exact.gather(1, index.long()[:, None])[:, 0] - least).max())

    band = float(torch.finfo(torch.float32).eps * exact.abs().max())
    index, _ = _nearest(host, features, codebook)
    assert excess(index) <= 2 * (excess(nearest_index(features, codebook)) + band)


@pytest.mark.parametrize("value", [6e-8, 3e-5, 1.0, 2049.0, 65504.0], ids=str)
def test_fp16_values_of_every_kind_are_read(host: ctypes.CDLL, value: float) -> None:
    """Subnormal, normal and largest: a value is nearest to itself, not to zero or to its negative."""
    codebook = torch.tensor([[0.0], [-value], [value]], dtype=torch.float16)
    features = torch.tensor([[value], [-value], [0.0]], dtype=torch.float16)
    index, _ = _nearest(host, features, codebook)
    assert index.tolist() == [2, 1, 0]


def test_no_distance_below_infinity_gives_code_zero(host: ctypes.CDLL) -> None:
    features = torch.tensor([[float("nan")] * 4, [1.0] * 4])
    codebook = torch.tensor([[3e38] * 4, [3e38] * 4])
    index, _ = _nearest(host, features, codebook)
    assert index.tolist() == [0, 0]


def test_sources_include_nothing_and_are_listed() -> None:
    for name in cuda_source_names():
        assert "#include" not in cuda_source(name)


def test_an_unknown_source_is_named_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no CUDA source 'nearest'; there are: .*nearest_code"):
        cuda_source("nearest")
