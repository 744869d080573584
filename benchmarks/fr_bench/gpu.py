"""The GPU of a run: its name, and the rates that it reaches."""

from statistics import median
from typing import NamedTuple

import torch

from fr_kernels.clock import time_on_gpu


class Ceilings(NamedTuple):
    """What this GPU reached in this run."""

    copy_gb_per_s: float
    """Bytes read and written by a copy of 512 MB."""
    matmul_tflop_per_s: float
    """float16 product of two 8192 x 8192 matrices."""


def gpu_name(device: torch.device) -> str:
    """Such as "NVIDIA H200"."""
    return torch.cuda.get_device_name(device)


def measure_ceilings() -> Ceilings:
    """Copy rate and matrix rate of this GPU now."""
    source = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda").half() for _ in range(2))
    timings = time_on_gpu({"copy": lambda: target.copy_(source), "matmul": lambda: a @ b})
    copy, matmul = (median(timings[name]) for name in ("copy", "matmul"))
    return Ceilings(round(2 * source.nbytes / copy / 1e9, 1), round(2 * 8192**3 / matmul / 1e12, 1))
