"""C++ of `csrc/` for the CPU at hand: compiled by the system's compiler at first use, cached on disk, called by ctypes.

A second each, once: `-march=native` is worth more than a wheel for every CPU. OpenMP is the one that torch has loaded
already, whose threads wait for the next operator of either.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fr_kernels.cache import cache_dir
from fr_kernels.dispatch import KernelUnavailableError
from fr_kernels.sources import source_folder

_LOG = logging.getLogger("fr_kernels")
OPTIONS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
SECONDS = 120
"""Of one run of the compiler, at most."""


@cache
def obstacle(source: str) -> str:
    """Why a source cannot be compiled and loaded here, asked once; empty when it is."""
    try:
        library(source)
    except KernelUnavailableError as error:
        return str(error)
    return ""


def call(source: str, function: str, *args: Tensor | int | float | None) -> int:
    """Run a function of a source, and return its integer result.

    Args:
        source: name in `csrc/`, without the suffix.
        function: `extern "C"`.
        args: as it declares them: a tensor on the CPU or None for a pointer, an int for an `int64_t`, a float for a
            `double`.

    Raises:
        KernelUnavailableError: it cannot be compiled here.
    """
    entry = _entry(source, function, tuple(map(_kind, args)))
    return entry(*(arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args))


@cache
def library(source: str) -> ctypes.CDLL:
    """A compiled source, loaded.

    Raises:
        KernelUnavailableError: there is no C++ compiler, or it refuses the source.
    """
    path = cache_dir() / "native" / f"{source}-{_key(source)}.so"
    if path.is_file():
        return _loaded(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            # At once or not at all: another process may look for the file meanwhile.
            _compile(source, Path(folder) / path.name).replace(path)
            return _loaded(path)
    except OSError as error:
        _LOG.warning("the compiled %s is not cached: %s", source, error)
        with tempfile.TemporaryDirectory() as folder:
            return _loaded(_compile(source, Path(folder) / path.name))


def threads() -> int:
    """Those that torch's own operators use."""
    return torch.get_num_threads()


@cache
def _entry(source: str, function: str, kinds: tuple[type, ...]) -> Callable[..., int]:
    """With its types declared once: 10 us less a call."""
    entry = library(source)[function]  # a new object each time, so nobody else's types change
    entry.argtypes, entry.restype = kinds, ctypes.c_int64
    return entry


def _kind(value: Tensor | int | float | None) -> type:
    if isinstance(value, int):
        return ctypes.c_int64
    return ctypes.c_double if isinstance(value, float) else ctypes.c_void_p


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailableError(f"{path} cannot be loaded: {error}; delete it") from error


def _compile(source: str, path: Path) -> Path:
    _run(_compiler(), *OPTIONS, str(source_folder() / f"{source}.cpp"), "-o", str(path))
    return path


def _key(source: str) -> str:
    """SHA-256 of all that decides what the compiler makes: sources, options, itself, and what it knows of the CPU."""
    compiler, folder = _compiler(), source_folder()
    files = [folder / f"{source}.cpp", *sorted(folder.glob("*.h"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    macros = _run(compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
    parts = (*texts, *OPTIONS, _run(compiler, "--version"), macros)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = next(
        filter(None, map(shutil.which, [wanted] if wanted else ["c++", "g++", "clang++"])), None
    )
    if found is None:
        raise KernelUnavailableError(
            f"there is no C++ compiler{f' {wanted} (CXX)' if wanted else ''} (apt install g++)"
        )
    return found


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise KernelUnavailableError(f"{command[0]} fails: {said[0] if said else error}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailableError(f"{command[0]} took more than {SECONDS} s") from error
    return done.stdout
