"""Timing on a GPU: CUDA graphs, a cold L2, calls in turns."""

from collections.abc import Callable, Mapping

import torch

FLUSHED_BYTES = 256 << 20  # several times the 50 MB L2 of an H100 or H200


def time_on_gpu(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 30, captured: bool = True
) -> dict[str, tuple[float, ...]]:
    """Seconds of each call in each round, replayed from a CUDA graph after the L2 was overwritten, in turns.

    Args:
        calls: by name; to be captured, one must neither synchronise nor allocate outside torch.
        repeats: rounds that count.
        captured: False: nothing is captured, each call is made anew, and what the host does counts.

    Raises:
        RuntimeError: a call cannot be captured.
    """
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    runs = {name: _captured(call).replay if captured else call for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-3, repeats):
        for name in reversed(tuple(calls)) if turn % 2 else calls:
            flush.zero_()
            taken = _timed(runs[name])
            if turn >= 0:
                samples[name].append(taken)
    return {name: tuple(taken) for name, taken in samples.items()}


def _captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, tunes and fills the allocator before the capture
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _timed(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
