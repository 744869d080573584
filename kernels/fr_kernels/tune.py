"""Measures the ops' launch settings on the GPU at hand and writes the best ones where the launchers look for them.

    python -m fr_kernels.tune [--op NAME] [-o DIR]

Each op's `tunables.py` names launchers and shapes; what may be varied the launchers say themselves, when they ask
`fr_kernels.measured.tuned`. For each key the search climbs from the written default: all settings that differ from
the best so far in one value (tiles and warps doubled or halved, one pipeline stage more or less) are tried, and the
fastest is the next start, until none is faster by `GAIN`. Nothing is timed that spills registers, does not fit the
GPU, or leaves the error budget: the error against float64 may be at most twice that of the default settings or of the
reference in the same dtype, plus one rounding.
"""

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fr_kernels.budget import budget
from fr_kernels.clock import time_on_gpu
from fr_kernels.launch import Launched, Settings, Space, Tunable, launches_made, triton_ops
from fr_kernels.measured import (
    CONFIGS,
    Asked,
    BadConfigError,
    Entry,
    Origin,
    gpu_file_name,
    read,
    trying,
    write,
)
from fr_kernels.sources import source_state

GAIN = 0.98
"""A setting replaces another where its median is at most this share: less is not worth leaving the default."""
Timer = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, Sequence[float]]]
"""Seconds of each call by name, in turns."""
Say = Callable[[str], None]


class Workload:
    """One tunable on one device: its inputs, what the defaults and the reference give, and the result in float64."""

    def __init__(self, tunable: Tunable, device: torch.device) -> None:
        """Run the launcher with the written defaults, and the reference in float64."""
        torch.manual_seed(0)
        self.tunable = tunable
        self.inputs = tunable.inputs(device)
        exact = tree_map(_double, self.inputs)
        self.exact = tunable.compared(tunable.exact(*exact), *exact)
        with trying({}) as asked:
            default = self._compared(tunable.run(*self.inputs))
        # Of a single number, such as a sum, the default's error may be small by luck; so may the reference's.
        self.peers = (default, self._compared(tunable.exact(*self.inputs)))
        self.asked: dict[str, Asked] = asked

    def call(self, chosen: Mapping[str, Settings]) -> Callable[[], Sequence[Tensor]]:
        """The launcher with these settings, by key."""

        def run() -> Sequence[Tensor]:
            with trying(chosen):
                return self.tunable.run(*self.inputs)

        return run

    def obstacle(self, chosen: Mapping[str, Settings]) -> str:
        """Why these settings may not be timed; empty when they may."""
        from triton.runtime.errors import OutOfResources

        try:
            with launches_made() as made:
                outputs = self.call(chosen)()
        except OutOfResources as error:
            return str(error)
        if spilling := [launched.name for launched in made if _spills(launched)]:
            return f"{', '.join(spilling)} spills registers"
        for got, exact, *peers in zip(
            self._compared(outputs), self.exact, *self.peers, strict=True
        ):
            kept = max((budget(got, peer, exact) for peer in peers), key=lambda one: one.allowed)
            if not kept.kept:
                return f"error {kept.error:.3g} against float64, allowed {kept.allowed:.3g}"
        return ""

    def _compared(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return list(self.tunable.compared(outputs, *self.inputs))


def _double(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _spills(launched: Launched) -> bool:
    return launched.compiled is not None and launched.compiled.n_spills > 0


def neighbours(settings: Settings, space: Space) -> list[Settings]:
    """Settings inside `space` that differ in one value: a tile or the warps x 2 or / 2, or one stage more or less."""
    found: list[Settings] = []
    given = settings.arguments()
    for name, (least, most) in space.items():
        value = given[name]
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        for step in steps:
            if least <= step <= most:
                warps, stages, blocks = _split(**{**given, name: step})
                found.append(Settings(blocks, warps, stages))
    return found


def _split(num_warps: int, num_stages: int, **blocks: int) -> tuple[int, int, dict[str, int]]:
    return num_warps, num_stages, blocks


def best_settings(
    workload: Workload, key: str, chosen: Mapping[str, Settings], timer: Timer, say: Say
) -> Settings:
    """Climb from the default of one key, with the other keys' settings as in `chosen`."""
    best, space = workload.asked[key]
    seen = [best]
    while True:
        fresh = [step for step in neighbours(best, space) if step not in seen]
        seen += fresh
        calls = {"best": workload.call({**chosen, key: best})}
        for number, step in enumerate(fresh):
            if reason := workload.obstacle({**chosen, key: step}):
                say(f"    skipped {step.arguments()}: {reason}")
            else:
                calls[str(number)] = workload.call({**chosen, key: step})
        if len(calls) == 1:
            return best
        medians = {name: median(taken) for name, taken in timer(calls).items()}
        fastest = min(calls, key=lambda name: medians[name])
        if fastest == "best" or medians[fastest] > GAIN * medians["best"]:
            return best
        best = fresh[int(fastest)]
        say(f"    {medians[fastest] * 1e6:.1f} us with {best.arguments()}")


def measure(
    tunables: Sequence[Tunable], device: torch.device, timer: Timer, say: Say
) -> dict[str, Entry]:
    """The best settings by key. A key belongs to the first tunable that asks for it."""
    entries: dict[str, Entry] = {}
    for tunable in tunables:
        say(f"  {tunable.name}")
        workload = Workload(tunable, device)
        chosen = {key: e.settings() for key, e in entries.items() if key in workload.asked}
        for key in [key for key in workload.asked if key not in chosen]:
            start = {**chosen, key: workload.asked[key].default}
            chosen[key] = best_settings(workload, key, chosen, timer, say)
            calls = {"default": workload.call(start), "chosen": workload.call(chosen)}
            times = {name: median(taken) * 1e6 for name, taken in timer(calls).items()}
            picked = chosen[key]
            entries[key] = Entry(
                picked.blocks,
                picked.num_warps,
                picked.num_stages,
                round(times["chosen"], 2),
                round(times["default"], 2),
            )
            say(
                f"    {key}: {picked.arguments()}  {times['chosen']:.1f} us, default {times['default']:.1f}"
            )
    return entries


def tunables(op: str, *, small: bool = False) -> list[Tunable]:
    """What the op declares, `tunables` of its `tunables.py`; `small`: shapes that the interpreter runs in seconds."""
    return importlib.import_module(f"fr_kernels.{op}.tunables").tunables(small)


def origin() -> Origin:
    """Now, and with what."""
    import triton

    commit, dirty = source_state(Path(__file__).parent, ":!kernels/fr_kernels/configs")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Origin(date, torch.__version__, triton.__version__, _driver(), commit, dirty)


def _driver() -> str:
    """The NVIDIA driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: nvidia-smi does not run"
    return done.stdout.split("\n")[0].strip()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fr_kernels.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--op", action="append", choices=triton_ops(), help="repeatable [all]")
    parser.add_argument("-o", "--output", type=Path, default=CONFIGS, help="[%(default)s]")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error(
            "settings are measured on an NVIDIA GPU, and torch finds none here; where there is one, check "
            "nvidia-smi and that torch.version.cuda is not None"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    path = given.output / gpu_file_name(gpu)
    try:
        read(path)
    except BadConfigError as error:
        parser.error(str(error))
    for op in given.op or triton_ops():
        print(op, flush=True)
        entries = measure(tunables(op), device, time_on_gpu, lambda line: print(line, flush=True))
        write(path, gpu, op, origin(), entries)
        print(f"  {len(entries)} entries written to {path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
