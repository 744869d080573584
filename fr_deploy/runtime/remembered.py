"""Which backend restores faster on this machine's CPU: measured once, remembered in a file."""

import json
import os
import platform
from importlib.metadata import version

import torch

from fr_deploy import __version__
from fr_deploy.atomic import atomic_write
from fr_deploy.models.restorer import RestorationGraph
from fr_kernels.cache import cache_dir
from fr_kernels.native import obstacle

FILE = "cpu-backends.json"
DEFAULT = "torch-eager"


def fastest(graph: RestorationGraph) -> str:
    """The backend measured fastest for a graph of this preset with these versions, else torch-eager."""
    return str(_read().get(_key(graph.preset.name), {}).get("backend", DEFAULT))


def remember(graph: RestorationGraph, milliseconds: dict[str, float]) -> str:
    """Keep the times of one face for each backend measured; returns the fastest."""
    best = min(milliseconds, key=lambda name: milliseconds[name])
    known = _read()
    known[_key(graph.preset.name)] = {"backend": best, "milliseconds": milliseconds}
    text = json.dumps(known, indent=2) + "\n"
    with atomic_write(cache_dir() / FILE) as file:
        file.write(text.encode())
    return best


def _read() -> dict[str, dict[str, object]]:
    path = cache_dir() / FILE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # none yet, or damaged: measured anew
        return {}


def _key(preset: str) -> str:
    """Of everything that may change which is faster."""
    machine = f"{platform.machine()} {os.cpu_count()} cores"
    kernels = "torch's operators" if obstacle("conv3x3") else "C++ kernels"
    packages = f"torch {torch.__version__}, onnxruntime {version('onnxruntime')}"
    return f"{preset}, {machine}, fr-deploy {__version__}, {kernels}, {packages}"
