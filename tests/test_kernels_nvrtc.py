"""CUDA C++ compiled by NVRTC, its cache, and the arguments of a launch."""

import ctypes
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fr_kernels import nvrtc
from fr_kernels.aot_cuda import kernels
from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.sources import cuda_source, cuda_source_names
from kernel_checks import NO_NVRTC, has_nvrtc


def _fake_core(compiled: list[str]) -> SimpleNamespace:
    """cuda.core's compiler: the machine code is the options."""

    def program(code: str, kind: str, options: str) -> SimpleNamespace:
        def compile_to(target: str, logs: None) -> SimpleNamespace:
            compiled.append(options)
            return SimpleNamespace(code=f"{target} {options} {len(code)} {kind}".encode())

        return SimpleNamespace(compile=compile_to)

    return SimpleNamespace(
        Program=program, ProgramOptions=lambda name, std, arch: f"{name} {std} {arch}"
    )


def test_compiled_code_is_cached_by_content_and_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    version = "13.0"
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(nvrtc, "_core", lambda: _fake_core(compiled))
    monkeypatch.setattr(nvrtc, "version", lambda: version)
    first = nvrtc.cubin("face_warp", "sm_90")
    assert nvrtc.cubin("face_warp", "sm_90") == first
    assert compiled == ["face_warp.cu c++17 sm_90"]
    nvrtc.cubin("face_warp", "sm_80")
    nvrtc.cubin("nearest_code", "sm_90")
    version = "13.1"
    nvrtc.cubin("face_warp", "sm_90")
    changed = cuda_source("face_warp") + "\n"
    monkeypatch.setattr(nvrtc, "cuda_source", lambda name: changed)
    nvrtc.cubin("face_warp", "sm_90")
    assert len(compiled) == 5
    files = sorted(path.name for path in (tmp_path / "nvrtc").iterdir())
    assert len(files) == 5
    assert all(
        re.fullmatch(r"(face_warp|nearest_code)-sm_\d+-[0-9a-f]{64}\.cubin", f) for f in files
    )


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(nvrtc, "_core", lambda: _fake_core([]))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    assert nvrtc.cubin("face_warp", "sm_90").startswith(b"cubin face_warp.cu")
    assert "the compiled face_warp is not cached" in caplog.text


def test_without_nvrtc_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.13"')  # cuda.pathfinder's error is one

    monkeypatch.setattr(nvrtc, "_module", lambda _: SimpleNamespace(nvrtcVersion=missing))
    with pytest.raises(KernelUnavailableError, match=r'pip install "fr-deploy\[cuda\]".*libnvrtc'):
        nvrtc.cubin("face_warp", "sm_90")


def test_an_empty_grid_launches_nothing() -> None:
    nvrtc.launch("face_warp", "face_cut", 0, 256, torch.zeros(1))


@pytest.mark.skipif(not has_nvrtc(), reason=NO_NVRTC)
@pytest.mark.parametrize("source", cuda_source_names())
def test_machine_code_comes_from_the_cache_the_second_time(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    code = nvrtc.cubin(source, "sm_90")
    assert code.startswith(b"\x7fELF")
    assert all(name.encode() in code for name in kernels(source))
    (path,) = (tmp_path / "nvrtc").iterdir()
    assert path.read_bytes() == code
    monkeypatch.setattr(nvrtc, "compiled", None)
    assert nvrtc.cubin(source, "sm_90") == code


@pytest.mark.skipif(not has_nvrtc(), reason=NO_NVRTC)
def test_arguments_reach_a_kernel_as_it_declares_them() -> None:
    """A pointer for a tensor, and an `int` and a `float` of four bytes, as cuda.core packs them."""
    packed = importlib.import_module("cuda.core._kernel_arg_handler").ParamHolder
    tensor = torch.zeros(3)
    holder = packed(tuple(nvrtc._argument(value) for value in (tensor, 7, 2.5)))
    at = ctypes.cast(holder.ptr, ctypes.POINTER(ctypes.c_void_p))
    kinds = (ctypes.c_int64, ctypes.c_int, ctypes.c_float)
    values = [ctypes.cast(at[i], ctypes.POINTER(kind))[0] for i, kind in enumerate(kinds)]
    assert values == [tensor.data_ptr(), 7, 2.5]
