"""C++ for the CPU at hand: compiled once, cached by content, refused with a reason; else torch's own operators run."""

import logging
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from fr_deploy.runtime.devices import Place
from fr_deploy.runtime.torch_backend import compiled_ops
from fr_kernels import conv3x3, native
from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.sources import source_folder

CPU = Place(torch.device("cpu"), "fp32")
needs_compiler = pytest.mark.skipif(
    bool(native.obstacle("conv3x3")), reason="no C++ compiler: apt install g++"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """An empty cache folder, and nothing loaded."""
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    kept = (native.obstacle, native.library, native._entry)
    for function in kept:
        function.cache_clear()
    yield tmp_path / "native"
    for function in kept:
        function.cache_clear()


@needs_compiler
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.call("conv3x3", "lanes") in (4, 8, 16)
    (made,) = cache.iterdir()
    assert made.name.startswith("conv3x3-")
    native.library.cache_clear()
    monkeypatch.setattr(native, "_compile", None)
    native.library("conv3x3")


@needs_compiler
def test_what_is_cached_is_of_source_options_and_compiler(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native._key("conv3x3")
    assert first != native._key("nearest_code")
    monkeypatch.setattr(native, "OPTIONS", (*native.OPTIONS, "-g"))
    assert native._key("conv3x3") != first


@needs_compiler
def test_a_folder_that_cannot_be_written_costs_the_cache_alone(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.joinpath("native").write_text("a file")
    with caplog.at_level(logging.WARNING, logger="fr_kernels"):
        assert native.call("conv3x3", "lanes") in (4, 8, 16)
    assert "the compiled conv3x3 is not cached" in caplog.text


@needs_compiler
def test_a_damaged_file_is_named(cache: Path) -> None:
    cache.mkdir()
    cache.joinpath(f"conv3x3-{native._key('conv3x3')}.so").write_bytes(b"nothing")
    with pytest.raises(KernelUnavailableError, match=r"conv3x3-.*cannot be loaded: .*; delete it"):
        native.library("conv3x3")


def test_without_a_compiler_the_reason_is_given(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = native.obstacle("conv3x3")
    assert reason == "there is no C++ compiler no-such-compiler (CXX) (apt install g++)"
    x, weight = torch.randn(1, 48, 16, 16), torch.randn(4, 48, 3, 3)
    with pytest.raises(KernelUnavailableError, match='impl="cpu" was asked for, but there is no'):
        conv3x3(x, weight, impl="cpu")
    assert torch.equal(conv3x3(x, weight), conv3x3(x, weight, impl="reference"))
    with caplog.at_level(logging.INFO, logger="fr_deploy"):
        assert not compiled_ops(CPU)
    assert "torch's own operators: there is no C++ compiler" in caplog.text
    assert not cache.exists()


def test_a_compiler_that_fails_is_quoted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "broken-c++"
    script.write_text("#!/bin/sh\necho 'no such option: -fopenmp' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert native.obstacle("conv3x3") == f"{script} fails: no such option: -fopenmp"


@needs_compiler
def test_every_source_compiles_without_a_warning(tmp_path: Path) -> None:
    sources = sorted(path.stem for path in source_folder().glob("*.cpp"))
    assert sources == ["conv3x3", "group_norm_silu", "nearest_code", "upsample_conv"]
    for name in sources:
        strict = ("-Wall", "-Wextra", "-Werror", str(source_folder() / f"{name}.cpp"))
        native._run(native._compiler(), *native.OPTIONS, *strict, "-o", str(tmp_path / "out.so"))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("lanes", ["-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-avx -mno-fma"])
def test_narrower_vectors_give_the_same_picture(lanes: str, tmp_path: Path) -> None:
    """On a CPU with 16 lanes the first is 8 lanes; the second is always 4."""
    code = (
        "import torch\n"
        "from fr_kernels import conv3x3, group_norm_silu, native, nearest_code\n"
        f"native.OPTIONS = (*native.OPTIONS, *{lanes.split()})\n"
        "print(native.call('conv3x3', 'lanes'))\n"
        "g = torch.Generator().manual_seed(0)\n"
        "x, w = torch.randn(1, 51, 17, 18, generator=g), torch.randn(19, 51, 3, 3, generator=g)\n"
        "y = conv3x3(x, w, impl='cpu')\n"
        "torch.testing.assert_close(y, conv3x3(x, w, impl='reference'), rtol=1e-5, atol=1e-4)\n"
        "given = (x, x[0, :, 0, 0], x[0, :, 1, 1], 3)\n"
        "one, two = (group_norm_silu(*given, impl=i).y for i in ('cpu', 'reference'))\n"
        "torch.testing.assert_close(one, two)\n"
        "f, c = y[0].flatten(1).T, w.flatten(1)[:, :19]\n"
        "one, two = (nearest_code(f, c, impl=i).indices for i in ('cpu', 'reference'))\n"
        "assert torch.equal(one, two)\n"
    )
    environment = {**os.environ, "FR_DEPLOY_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= (8 if "avx2" not in lanes else 4)


@needs_compiler
def test_only_float32_on_a_cpu_run_eagerly_takes_them() -> None:
    assert compiled_ops(CPU)
    assert not compiled_ops(Place(torch.device("cpu"), "bf16"))
    assert not compiled_ops(CPU, "compile")
    assert compiled_ops(Place(torch.device("cuda", 0), "fp16"))
