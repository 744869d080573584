"""What this machine has for engines: TensorRT, a GPU, a driver. Needs neither torch with CUDA nor a GPU."""

import importlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from fr_deploy.errors import ResourceError
from fr_deploy.manifest_check import Here

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings", "tensorrt"),
        "tensorrt-rtx": ("tensorrt-rtx",),
    }
)
CUDA = "pip install 'fr-deploy[cuda]'"


def look(index: int = 0) -> Here:
    """Look at this machine.

    Args:
        index: of the GPU.
    """
    versions = {flavour: _first(names) for flavour, names in DISTRIBUTIONS.items()}
    known = {flavour: found for flavour, found in versions.items() if found is not None}
    try:
        name, capability = _gpu(bindings("runtime"), index)
    except ResourceError as error:
        return Here(known, no_gpu=str(error))
    return Here(known, name, capability, _driver(bindings("nvml")))


def bindings(module: str) -> Any:
    """`cuda.bindings.<module>` of cuda-python.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{module}")
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"running engines needs cuda-python, which is not installed: {CUDA}"
        ) from error


def _first(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _gpu(runtime: Any, index: int) -> tuple[str, str]:
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        reason = "it counts none" if not count and not int(error) else error.name
        raise ResourceError(
            f"CUDA finds no NVIDIA GPU or no driver that is new enough ({reason}); look at: nvidia-smi"
        )
    if index >= count:
        raise ResourceError(f"there is no cuda:{index}, only {count} from cuda:0 on")
    error, about = runtime.cudaGetDeviceProperties(index)
    if error != runtime.cudaError_t.cudaSuccess:
        raise ResourceError(
            f"CUDA does not describe GPU {index} ({error.name}); look at: nvidia-smi"
        )
    return about.name.split(b"\0")[0].decode(), f"{about.major}.{about.minor}"


def _driver(nvml: Any) -> str | None:
    """The driver's version, from NVML; None where there is no NVML."""
    try:
        nvml.init_v2()
        return nvml.system_get_driver_version()
    except Exception:  # it raises classes of its own, and of the library loader
        return None
