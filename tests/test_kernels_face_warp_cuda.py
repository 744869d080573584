"""csrc/face_warp.cu run on the CPU through its own launcher; compiled: test_kernels_aot_cuda.py."""

import ctypes
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fr_kernels import nvrtc
from fr_kernels.dispatch import declared_launches
from fr_kernels.face_warp import cuda_impl, draw, plan, reference
from fr_kernels.face_warp.op import cut_faces, paste_faces
from fr_kernels.sources import cuda_source
from kernel_checks import launches, poisoned
from scenes import face_crop, texture

# A block whose threads wait for one another needs a CPU thread for each of them.
HOST = """
#include "cuda_on_host.h"
#include "face_warp.cu"
using Byte = unsigned char;
extern "C" void run_face_average(int blocks, const Byte* p, const double* jobs, int n, float* averages) {
    launch_without_barriers(blocks, THREADS, [=] { face_average(p, jobs, n, averages); });
}
extern "C" void run_face_cut(
    int blocks, const Byte* frames, const double* jobs, int n, const float* averages, Byte* crops) {
    launch_without_barriers(blocks, THREADS, [=] { face_cut(frames, jobs, n, averages, crops); });
}
extern "C" void run_face_detail(
    int blocks, const Byte* crops, const Byte* faces, const double* jobs, int size, int share, float a, float b,
    float c, double* partials) {
    launch(blocks, THREADS, [=] { face_detail(crops, faces, jobs, size, share, a, b, c, partials); });
}
extern "C" void run_face_keep(int blocks, const double* partials, int n, int share, float* kept) {
    launch_without_barriers(blocks, THREADS, [=] { face_keep(partials, n, share, kept); });
}
extern "C" void run_face_blend(
    int blocks, Byte* frames, const Byte* faces, const double* jobs, int n, const float* averages,
    const Byte* crops, const float* kept, int size, float blend, unsigned long long* counts) {
    launch(blocks, THREADS, [=] {
        face_blend(frames, faces, jobs, n, averages, crops, kept, size, blend, counts);
    });
}
"""
SIZE = 24
Launch = Callable[..., None]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "face_warp.cu").write_text(cuda_source("face_warp"))
    (folder / "host.cpp").write_text(HOST)
    include = f"-I{Path(__file__).parent}"
    # -ffp-contract=fast: the GPU fuses multiply and add, too.
    flags = ["-std=c++20", "-O1", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", include]
    command = [compiler, *flags, "host.cpp", "-o", "host.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "host.so"))


@pytest.fixture
def launched(host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launcher's kernels run on the CPU from here on; the names of those launched."""
    names: list[str] = []

    def launch(
        source: str, kernel: str, blocks: int, threads: int, *args: Tensor | int | float
    ) -> None:
        assert (source, threads) == ("face_warp", 256)
        if blocks:
            names.append(kernel)
            values = [_c_argument(arg) for arg in args]
            getattr(host, f"run_{kernel}")(blocks, *values)

    monkeypatch.setattr(nvrtc, "launch", launch)
    return names


def _c_argument(value: Tensor | int | float) -> object:
    if isinstance(value, Tensor):
        assert value.is_contiguous() or value.dtype == torch.uint8
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


def _maps(*places: tuple[float, float, tuple[float, float]], size: int = SIZE) -> Tensor:
    """Frame -> crop by angle, scale and middle of the face: float64 [N, 2, 3]."""
    maps: list[np.ndarray] = []
    for angle, scale, middle in places:
        c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
        turn = np.array([[c, -s], [s, c]])
        maps.append(np.column_stack([turn, (size - 1) / 2 - turn @ middle]))
    return torch.from_numpy(np.array(maps).reshape(-1, 2, 3))


def _frames(count: int = 1) -> Tensor:
    """A photo, and noise of the steepest kind in its right half: uint8 [F, 110, 130, 3]."""
    frames = [
        face_crop("p005-selfie")[40 * i : 40 * i + 440 : 4, :520:4][:, :130] for i in range(count)
    ]
    whole = np.full((count, 110, 130, 3), 128, np.uint8)
    for frame, photo in zip(whole, frames, strict=True):
        frame[:, : photo.shape[1]] = photo
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (count, 110, 65, 3))
    whole[:, :, 65:] = noise
    return torch.from_numpy(whole)


# Faces larger and smaller than the crop, averaged and not, each way of sampling; one cut by the border; and a
# face wholly outside its frame.
PLACES = [
    (25.0, 0.3, (65.0, 55.0)),
    (180.0, 0.7, (70.2, 40.7)),
    (0.0, 1.0, (40.0, 30.0)),
    (-10.0, 1.4, (64.5, 50.1)),
    (33.0, 3.0, (65.3, 55.2)),
    (12.0, 0.45, (4.0, 106.0)),
    (0.0, 0.8, (900.0, -300.0)),
]


def _difference(a: Tensor, b: Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


def test_cut_is_the_reference(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one grey level, as fused multiplications round; all faces of two frames in two launches."""
    frames, maps = _frames(2), _maps(*PLACES)
    which = torch.tensor([i % 2 for i in range(len(maps))], dtype=torch.int32)
    with poisoned(monkeypatch):
        crops = cuda_impl.cut_faces(frames, which, maps, SIZE)
    expected = reference.cut_faces(frames, which, maps, SIZE)
    assert _difference(crops, expected) <= 1
    assert (crops != expected).float().mean() < 0.01
    assert launched == ["face_average", "face_cut"]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_paste_is_the_reference(
    place: tuple[float, float, tuple[float, float]],
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames, maps, which = _frames(), _maps(place), torch.zeros(1, dtype=torch.int32)
    crop = reference.cut_faces(frames, which, maps, SIZE)
    restored = draw.rounded(0.5 * crop + 0.4 * crop.roll(1, 2) + 9)
    expected = frames.clone()
    counts = reference.paste_faces(expected, which, restored, maps, 0.9)
    with poisoned(monkeypatch):
        got = cuda_impl.paste_faces(frames, which, restored, maps, 0.9)
    assert _difference(frames, expected) <= 1
    assert (frames != expected).float().mean() < 0.01
    assert torch.equal(got[:, 0], counts[:, 0])
    assert abs(int(got[0, 1]) - int(counts[0, 1])) <= 2  # where the mask is zero to seven digits
    assert len(launched) == declared_launches("paste_faces", frames, which, restored, maps)


def test_faces_that_overlap_are_pasted_in_order(launched: list[str]) -> None:
    """Layers: the second face overlaps the first, the third neither, the fourth lies in another frame."""
    frames = _frames(2)
    maps = _maps((0, 0.5, (30, 30)), (20, 1.5, (40, 35)), (5, 1.2, (110, 90)), (0, 0.6, (40, 40)))
    which = torch.tensor([0, 0, 0, 1], dtype=torch.int32)
    restored = torch.from_numpy(np.stack([texture(SIZE, SIZE, seed) for seed in range(4)]))
    groups = plan.layers(plan.places(frames, which, maps, SIZE))
    assert [[place.face for place in group] for group in groups] == [[0, 2, 3], [1]]
    together, apart = frames.clone(), frames.clone()
    cuda_impl.paste_faces(together, which, restored, maps, 1.0)
    assert len(launched) == declared_launches("paste_faces", frames, which, restored, maps)
    for i in range(4):
        cuda_impl.paste_faces(apart, which[i : i + 1], restored[i : i + 1], maps[i : i + 1], 1.0)
    assert torch.equal(together, apart)
    reference.paste_faces(frames, which, restored, maps, 1.0)
    assert _difference(together, frames) <= 1


def test_a_view_of_frames_is_changed_in_place(launched: list[str]) -> None:
    whole = _frames()
    view, maps, which = whole[:, 5:100, 7:120], _maps(PLACES[0]), torch.zeros(1, dtype=torch.int32)
    restored = torch.from_numpy(texture(SIZE, 2 * SIZE, 4))[None, :, ::2]
    expected = whole.clone()
    reference.paste_faces(expected[:, 5:100, 7:120], which, restored, maps, 1.0)
    cuda_impl.paste_faces(view, which, restored, maps, 1.0)
    assert _difference(whole, expected) <= 1
    around = torch.ones_like(whole, dtype=torch.bool)
    around[:, 5:100, 7:120] = False
    assert torch.equal(whole[around], _frames()[around])


def test_launches_are_the_declared_ones(launched: list[str]) -> None:
    """torch itself adds none but the copies of the tables to the GPU."""
    frames, which = _frames(), torch.zeros(1, dtype=torch.int32)
    for place in PLACES:
        maps = _maps(place)
        made = launches(lambda maps=maps: cuda_impl.cut_faces(frames, which, maps, SIZE))
        assert not set(made) - {"lift_fresh", "_to_copy", "detach_"}
        declared = declared_launches("cut_faces", frames, which, maps, SIZE)
        assert len(launched) == declared == (2 if place[1] < 0.5 else 1)
        launched.clear()
    none = torch.zeros(0, SIZE, SIZE, 3, dtype=torch.uint8)
    assert cuda_impl.cut_faces(frames, which[:0], _maps(), SIZE).shape == none.shape
    assert cuda_impl.paste_faces(frames, which[:0], none, _maps(), 1.0).shape == (0, 2)
    assert launched == []


def test_the_columns_of_jobs_are_the_fields_of_the_source() -> None:
    text = re.sub(r"//.*", "", cuda_source("face_warp"))
    body = re.search(r"enum Field \{(.*?)\}", text, re.DOTALL)
    assert body is not None
    fields = re.findall(r"\w+", body[1])
    assert fields[-1] == "FIELDS"
    (place,) = plan.places(_frames(), torch.zeros(1, dtype=torch.int32), _maps(PLACES[0]), SIZE)
    work = cuda_impl.Work(place, -1, (0, 0, 0, 0), place.cut, (0, 0), place.box)
    row = dict(zip(fields, cuda_impl._row(work, 11, 12, 13), strict=False))
    assert len(row) == len(cuda_impl._row(work, 11, 12, 13)) == len(fields) - 1
    named = {"AVERAGE": 11, "AVERAGE_BLOCK": 12, "DRAW_BLOCK": 13, "LARGE": -1}
    named |= {"REDUCE": place.cut.reduce, "X0": place.cut.to_source.x0, "MYY": place.matrix.yy}
    assert {name: row[name] for name in named} == named


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    frames, maps = _frames(2), _maps(*PLACES)
    which = torch.tensor([i % 2 for i in range(len(maps))], dtype=torch.int32)
    crops = reference.cut_faces(frames, which, maps, SIZE)
    device = frames.cuda()
    assert _difference(cut_faces(device, which, maps, SIZE, impl="cuda").cpu(), crops) <= 1
    paste_faces(device, which, crops.flip(1).cuda(), maps, 0.9, impl="cuda")
    reference.paste_faces(frames, which, crops.flip(1), maps, 0.9)
    assert _difference(device.cpu(), frames) <= 1
    assert os.listdir(tmp_path / "nvrtc")
