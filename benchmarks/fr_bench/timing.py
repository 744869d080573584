"""Timing of several techniques in turns, so that a machine that slows down slows them all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Wall times of one technique, in seconds, in the order of the rounds."""

    samples: tuple[float, ...]

    def milliseconds(self, percent: float) -> float:
        """A percentile, in milliseconds; 0 is the best."""
        return float(np.percentile(self.samples, percent)) * 1e3


@dataclass(frozen=True)
class Ratio:
    """How many times one technique is faster than another."""

    best: float
    """Of the best times: what other processes on the machine disturb least."""
    p50: float
    """Of each round's two times; so are the next two."""
    p20: float
    p80: float

    def __str__(self) -> str:
        rounds = f"p20 {self.p20:.2f}, p50 {self.p50:.2f}, p80 {self.p80:.2f}"
        return f"{self.best:.2f}x by the best times (by rounds: {rounds})"


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 9,
    warmups: int = 2,
    leading: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every call once a round; odd rounds run in reverse, so that none always comes first.

    Args:
        calls: techniques by name.
        repeats: rounds that count.
        warmups: rounds before them (the allocator, the thread pool and the primitive caches fill).
        leading: calls before each that is timed, so that what ran before it does not count: onnxruntime's threads spin
            on for a while, which took 12 % of whoever came behind it.
        clock: in seconds.

    Raises:
        ValueError: no call, or no round.
    """
    if not calls or repeats < 1:
        raise ValueError(f"{len(calls)} calls and {repeats} repeats; both must be at least 1")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-warmups, repeats):
        for name in reversed(tuple(calls)) if turn % 2 else calls:
            for _ in range(leading):
                calls[name]()
            start = clock()
            calls[name]()
            taken = clock() - start
            if turn >= 0:
                samples[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def ratio(slow: Timing, fast: Timing) -> Ratio:
    """`slow` over `fast`; both come from one `interleave`."""
    quotients = np.asarray(slow.samples) / np.asarray(fast.samples)
    p50, p20, p80 = (float(q) for q in np.percentile(quotients, (50, 20, 80)))
    return Ratio(min(slow.samples) / min(fast.samples), p50, p20, p80)
