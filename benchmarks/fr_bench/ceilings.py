"""The rates that a device reaches in the run whose figures stand beside them."""

from statistics import median
from typing import NamedTuple

import torch

from fr_bench.timing import interleave
from fr_kernels.clock import time_on_gpu


class Ceilings(NamedTuple):
    """What this device reached in this run."""

    copy_gb_per_s: float
    """Bytes read and written by a copy of 512 MB."""
    matmul_tflop_per_s: float
    """Product of two square matrices: on a GPU float16 of 8192, on a CPU float32 of 2048."""


def gpu_name(device: torch.device) -> str:
    """Such as "NVIDIA H200"."""
    return torch.cuda.get_device_name(device)


def measure_ceilings(device: str = "cuda") -> Ceilings:
    """Copy rate and matrix rate of a GPU or of the CPU now."""
    on_gpu = device != "cpu"
    side, dtype = (8192, torch.float16) if on_gpu else (2048, torch.float32)
    source = torch.zeros(512 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    if on_gpu:
        copy, matmul = (median(taken) for taken in time_on_gpu(calls).values())
    else:
        # A CPU is shared with other processes: its best time is the ceiling.
        copy, matmul = (min(timing.samples) for timing in interleave(calls, repeats=5).values())
    return Ceilings(round(2 * source.nbytes / copy / 1e9, 1), round(2 * side**3 / matmul / 1e12, 3))
