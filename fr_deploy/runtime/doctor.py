"""What this machine can run, and why not the rest: facts, then a self-test of every backend."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fr_deploy
from fr_deploy.bundle import load_graph
from fr_deploy.errors import FrDeployError
from fr_deploy.runtime.agreement import agree, random_pictures
from fr_deploy.runtime.backend import Backend
from fr_deploy.runtime.devices import DtypeName, Place, choose_place, no_gpu
from fr_deploy.runtime.remembered import remember
from fr_deploy.runtime.select import onnx_backend
from fr_deploy.runtime.torch_backend import TorchBackend

PACKAGES = (
    "torch", "triton", "onnxruntime", "onnxscript", "diffusers", "xformers", "cuda-core", "cuda-bindings",
    "nvidia-cuda-nvrtc", "tensorrt", "tensorrt-rtx", "cryptography",
)  # fmt: skip
LEAST_PSNR = {"fp32": 60.0, "fp16": 40.0, "bf16": 30.0}
"""dB of a backend's picture against torch in float32 on the CPU; float32 summed in another order gives 70 and more."""
SECONDS = 1.0  # of timing a backend


@dataclass(frozen=True)
class Check:
    """One backend's self-test."""

    backend: str
    device: str
    works: bool
    reason: str
    """Why it does not work; empty where it does."""
    milliseconds: float | None = None
    """Of one face, best of a second."""
    psnr_db: float | None = None
    """Against torch in float32 on the CPU; None when no byte differs."""


def facts() -> dict[str, Any]:
    """Versions, CPU and GPUs."""
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": about.name,
                "memory_gib": round(about.total_memory / 2**30, 1),
                "capability": f"{about.major}.{about.minor}",
            }
        )
    return {
        "fr_deploy": fr_deploy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": gpus,
        "no_gpu": "" if gpus else no_gpu(),
    }


def check_backends(model: str, *, compiled: bool, show: Callable[[Check], None]) -> list[Check]:
    """Restore one picture with every backend; on a CPU the faster one is remembered for `--backend auto`.

    Args:
        model: embedded name, bundle folder or hub id.
        compiled: try torch.compile too, which takes minutes.
        show: called with each result as it comes.
    """
    cpu = Place(torch.device("cpu"), "fp32")
    face = random_pictures(load_graph(model).preset.size)
    expected = TorchBackend(load_graph(model), cpu).run(face)
    checks: list[Check] = []
    for name, place, make in _candidates(model, cpu, compiled):
        checks.append(_check(name, place, make, face, expected))
        show(checks[-1])
    times = {c.backend: c.milliseconds for c in checks if c.device == "cpu" and c.milliseconds}
    if len(times) > 1:
        remember(load_graph(model), times)
    return checks


def _candidates(
    model: str, cpu: Place, compiled: bool
) -> list[tuple[str, Place, Callable[[], Backend]]]:
    def on_torch(place: Place, mode: Any) -> Callable[[], Backend]:
        return lambda: TorchBackend(load_graph(model), place, mode)

    made: list[tuple[str, Place, Callable[[], Backend]]] = [
        ("torch-eager", cpu, on_torch(cpu, "eager")),
        ("onnxruntime", cpu, lambda: onnx_backend(load_graph(model), cpu)),
    ]
    if torch.cuda.is_available():
        dtypes: tuple[DtypeName, ...] = ("fp16", "fp32")
        for place in (choose_place("cuda", dtype) for dtype in dtypes):
            made += [(f"torch-{m}", place, on_torch(place, m)) for m in ("graphs", "eager")]
    if compiled:
        place = choose_place()
        made.append(("torch-compile", place, lambda: _compiled(on_torch(place, "compile"), place)))
    return made


def _compiled(make: Callable[[], Backend], place: Place) -> Backend:
    if place.device.type == "cpu" and not any(shutil.which(c) for c in ("c++", "g++", "clang++")):
        raise FrDeployError("torch.compile needs a C++ compiler on a CPU: apt install g++")
    return make()


def _check(
    name: str, place: Place, make: Callable[[], Backend], face: Tensor, expected: Tensor
) -> Check:
    device = place.label
    try:
        backend = make()
        got = backend.run(face)
        agreement = agree(got, expected)
        psnr = round(agreement.psnr, 1) if agreement.largest else None
        least = LEAST_PSNR[backend.dtype]
        if psnr is not None and psnr < least:
            return Check(
                name,
                device,
                False,
                f"its picture is {psnr} dB from torch's in fp32; allowed: {least}",
            )
        taken = _best(lambda: backend.run(face))
        backend.close()
    except Exception as error:  # whatever a driver, a compiler or a package raises is the finding
        return Check(name, device, False, f"{type(error).__name__}: {error}".splitlines()[0])
    return Check(name, device, True, "", round(taken * 1e3, 1), psnr)


def _best(call: Callable[[], object]) -> float:
    samples: list[float] = []
    until = time.perf_counter() + SECONDS
    while not samples or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return min(samples)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cache_note(folder: Path) -> str:
    """Where exported and compiled files are kept, and how large they are."""
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.exists() else 0
    return f"{folder} ({size / 2**20:.0f} MiB)"
