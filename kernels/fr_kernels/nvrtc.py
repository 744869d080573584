"""CUDA C++ of `csrc/`, compiled by NVRTC for the GPU at hand, cached on disk, and launched on torch's stream.

cuda-python (`cuda.core`) is imported when a kernel is compiled or launched, never before.
"""

import ctypes
import hashlib
import importlib
import io
import logging
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr_kernels.cache import cache_dir
from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.sources import cuda_source

_LOG = logging.getLogger("fr_kernels")
STANDARD = "c++17"


def launch(
    source: str, kernel: str, blocks: int, threads: int, *args: Tensor | int | float
) -> None:
    """Run one kernel on the current stream of its tensors' device; does nothing on an empty grid.

    Args:
        source: name in `csrc/`, without the suffix.
        kernel: its `extern "C"` function.
        blocks: of the grid, one-dimensional.
        threads: of a block.
        args: as the kernel declares them: a tensor for a pointer, an int for an `int`, a float for a `float`.
    """
    if not blocks:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    core = _core()
    # torch uses the same primary context, and gets its own device back afterwards.
    with torch.cuda.device(device):
        core.Device(device.index).set_current()
        stream = core.Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
        config = core.LaunchConfig(grid=blocks, block=threads)
        function = _kernel(source, kernel, architecture(device))
        core.launch(stream, config, function, *(_argument(arg) for arg in args))


def architecture(device: torch.device) -> str:
    """What NVRTC calls this GPU, such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def cubin(source: str, arch: str) -> bytes:
    """Machine code of a source for an architecture: from the cache folder, or compiled and put there.

    The file is named after the architecture and the SHA-256 of source, options and NVRTC's version, so nothing in the
    folder is ever out of date. A folder that cannot be written costs the cache, not the call.
    """
    path = cache_folder() / f"{source}-{arch}-{_key(source)}.cubin"
    if path.is_file():
        return path.read_bytes()
    code = compiled(source, arch)
    try:
        _write(path, code)
    except OSError as error:
        _LOG.warning("the compiled %s is not cached: %s", source, error)
    return code


def compiled(source: str, arch: str, said: io.StringIO | None = None) -> bytes:
    """Compile a source for an architecture, whatever the cache holds; needs no GPU.

    Args:
        source: name in `csrc/`, without the suffix.
        arch: such as "sm_90".
        said: gets what ptxas says of each kernel: registers, stack, spills.
    """
    core = _core()
    # Of what NVRTC finds in a cache of its own it says nothing.
    more = {} if said is None else {"ptxas_options": ["-v"], "no_cache": True}
    options = core.ProgramOptions(name=f"{source}.cu", std=STANDARD, arch=arch, **more)
    program = core.Program(cuda_source(source), "c++", options)
    return bytes(program.compile("cubin", logs=said).code)


def version() -> str:
    """NVRTC's, such as "13.5".

    Raises:
        KernelUnavailableError: there is no NVRTC.
    """
    try:
        error, major, minor = _module("cuda.bindings.nvrtc").nvrtcVersion()
    except RuntimeError as missing:
        raise KernelUnavailableError(
            f'NVRTC is not installed (pip install "fr-deploy[cuda]"): {missing}'
        ) from missing
    if int(error):
        raise RuntimeError(f"NVRTC does not tell its version: {error}")
    return f"{major}.{minor}"


def cache_folder() -> Path:
    """`$FR_DEPLOY_CACHE/nvrtc`, else `~/.cache/fr-deploy/nvrtc`."""
    return cache_dir() / "nvrtc"


@cache
def _kernel(source: str, kernel: str, arch: str) -> Any:
    return _code(source, arch).get_kernel(kernel)


@cache
def _code(source: str, arch: str) -> Any:
    return _core().ObjectCode.from_cubin(cubin(source, arch))


def _key(source: str) -> str:
    parts = (cuda_source(source), STANDARD, version())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _write(path: Path, code: bytes) -> None:
    """At once or not at all: another process may look for the file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_bytes(code)
        written.replace(path)


def _argument(value: Tensor | int | float) -> Any:
    """cuda.core passes a Python int as a pointer, and ctypes as what they are."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


def _core() -> Any:
    return _module("cuda.core")


def _module(name: str) -> Any:
    # By name: an optional package, which a type checker need not find.
    return importlib.import_module(name)
