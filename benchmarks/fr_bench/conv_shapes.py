"""The convolutions that carry three quarters of the FLOPs, each alone: how near to the matrix rate does cuDNN come?

    python -m fr_bench.conv_shapes [--device cuda] [--scale 1] [-o benchmarks/results]

Decides whether a convolution of our own could pay: only where cuDNN stays under 60 % of the rate of the same run.
Upsampling is measured in its three forms, which compute the same.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_bench.ceilings import Ceilings, gpu_name, measure_ceilings
from fr_bench.machine import Machine, this_machine
from fr_bench.rows import append_rows
from fr_bench.timing import Timing, interleave
from fr_kernels import phase_shuffle
from fr_kernels.clock import time_on_gpu

# (side, inputs, outputs) of the eight 3x3 convolutions that carry 74 % of the FLOPs at full size, and of the
# upsampling ones (side before).
SHAPES = (
    (128, 512, 512), (256, 256, 256), (512, 128, 128), (64, 512, 512),
    (256, 512, 256), (512, 256, 128), (64, 320, 320), (32, 640, 640),
)  # fmt: skip
UPSAMPLE = ((8, 1280), (16, 1280), (32, 640), (64, 512), (128, 512), (256, 256))


@dataclass(frozen=True, kw_only=True)
class ConvRow(Machine):
    """One convolution; the order of the fields is the header of the CSV file."""

    date: str
    device: str
    form: str
    side: int
    inputs: int
    outputs: int
    batch: int
    p20_us: float
    p50_us: float
    p80_us: float
    tflop_per_s: float
    """Of the plain 3x3 convolution's FLOPs, whatever the form leaves out."""
    share_of_matmul: float


def measure(device: str, *, scale: int = 1, batches: tuple[int, ...] = (1, 8)) -> list[ConvRow]:
    """Time every shape.

    Args:
        device: "cuda" (float16) or "cpu" (float32).
        scale: sides and channels are divided by this: a rehearsal.
        batches: pictures a call.
    """
    torch.backends.cudnn.benchmark = True
    ceilings, rows = measure_ceilings(device), list[ConvRow]()
    for batch in batches:
        for side, inputs, outputs in SHAPES:
            given = (side // scale or 1, inputs // scale, outputs // scale, batch)
            calls = _convolutions(device, *given)
            rows += _rows(device, calls, given, 2 * 9, given[0], ceilings)
        for side, channels in UPSAMPLE:
            given = (side // scale or 1, channels // scale, channels // scale, batch)
            calls = _upsamplings(device, *given)
            rows += _rows(device, calls, given, 2 * 9, 2 * given[0], ceilings)
    return rows


Calls = dict[str, Callable[[], Tensor]]


def _convolutions(device: str, side: int, inputs: int, outputs: int, batch: int) -> Calls:
    x, w = _drawn(device, batch, inputs, side, side), _drawn(device, outputs, inputs, 3, 3)
    x_rows, w_rows = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    return {
        "3x3 channels_last": lambda: F.conv2d(x_rows, w_rows, padding=1),
        "3x3 NCHW": lambda: F.conv2d(x, w, padding=1),
    }


def _upsamplings(device: str, side: int, inputs: int, outputs: int, batch: int) -> Calls:
    def rows(*shape: int) -> Tensor:
        return _drawn(device, *shape).contiguous(memory_format=torch.channels_last)

    x, plain = rows(batch, inputs, side, side), rows(outputs, inputs, 3, 3)
    folded, transposed = rows(4 * outputs, inputs, 2, 2), rows(inputs, outputs, 4, 4)
    return {
        "nearest, 3x3": lambda: F.conv2d(F.interpolate(x, scale_factor=2.0), plain, padding=1),
        "2x2, shuffle": lambda: phase_shuffle(F.conv2d(x, folded, padding=1)),
        "2x2 alone": lambda: F.conv2d(x, folded, padding=1),
        "transposed 4x4": lambda: F.conv_transpose2d(x, transposed, stride=2, padding=1),
    }


def _drawn(device: str, *shape: int) -> Tensor:
    dtype = torch.float32 if device == "cpu" else torch.float16
    return torch.randn(shape, device=device).to(dtype)


def _rows(
    device: str,
    calls: Calls,
    given: tuple[int, int, int, int],
    per_pixel: int,
    side_out: int,
    ceilings: Ceilings,
) -> list[ConvRow]:
    side, inputs, outputs, batch = given
    flops = per_pixel * inputs * outputs * side_out**2 * batch
    with torch.inference_mode():
        if device == "cpu":
            timings = interleave(calls, repeats=5)
        else:
            timings = {name: Timing(taken) for name, taken in time_on_gpu(calls).items()}
    machine, date = asdict(this_machine()), datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[ConvRow] = []
    for name, timing in timings.items():
        p20, p50, p80 = (timing.milliseconds(p) * 1e3 for p in (20, 50, 80))
        rate = flops / p50 / 1e6
        rows.append(
            ConvRow(
                **machine,
                date=date,
                device="cpu" if device == "cpu" else gpu_name(torch.device(device)),
                form=name,
                side=side,
                inputs=inputs,
                outputs=outputs,
                batch=batch,
                p20_us=round(p20, 2),
                p50_us=round(p50, 2),
                p80_us=round(p80, 2),
                tflop_per_s=round(rate, 3),
                share_of_matmul=round(rate / ceilings.matmul_tflop_per_s, 3),
            )
        )
    return rows


def main() -> None:
    """Measure, print, and append to conv.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    rows = measure(given.device, scale=given.scale)
    for row in rows:
        print(
            f"{row.form:<18} {row.inputs:>4} -> {row.outputs:<4} {row.side:>3} px batch {row.batch}  "
            f"p50 {row.p50_us:9.1f} us  {row.tflop_per_s:8.2f} TFLOP/s  {row.share_of_matmul:5.0%} of matmul"
        )
    append_rows(given.output / "conv.csv", rows, ConvRow)


if __name__ == "__main__":
    main()
