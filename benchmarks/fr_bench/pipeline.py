"""`fr-deploy bench pipeline`: the whole restoration, every technique in one process; pictures first, times second."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from fr_bench.ceilings import Ceilings, gpu_name, measure_ceilings
from fr_bench.machine import Machine, this_machine
from fr_bench.techniques import (
    COMPILED,
    DIFFUSERS,
    FOLDED,
    GRAPHS,
    KERNELS,
    ONNX,
    UNFOLDED,
    UNFOLDED_KERNELS,
    Run,
    Source,
    Technique,
    reference,
    techniques,
)
from fr_bench.timing import Ratio, Timing, interleave, ratio
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.inspect import Stage, inspect_graph, inspect_preset, totals
from fr_deploy.runtime.devices import Place

LEAST_PSNR = 50.0
"""dB in float32; sums in another order differ by a level here and there: 57 dB and more."""
BAND = 0.5
"""Of 255: what rounding to bytes moves."""
INPUTS = 4  # fresh random faces for every call, in turns: no cache holds the last result


@dataclass(frozen=True, kw_only=True)
class PipelineRow(Machine):
    """One technique at one batch; the order of the fields is the header of the CSV file."""

    date: str
    device: str
    model: str
    random_weights: bool
    dtype: str
    batch: int
    technique: str
    repeats: int
    best_ms: float
    """Of a call, bytes in to bytes out, copies to and from the device included; so are the next three."""
    p20_ms: float
    p50_ms: float
    p80_ms: float
    images_per_s: float
    """At the median; so are the next two."""
    tflop_per_s: float
    """Of the FLOPs of `counted`, whatever the technique leaves out."""
    share_of_matmul: float
    """That, over the matrix rate of the same run."""
    matmul_tflop_per_s: float
    copy_gb_per_s: float
    launches: int | None
    """Operations launched for one batch; None where a compiler decides."""
    counted: str
    """"model", unfolded; "graph", folded, where diffusers is not installed."""
    peak_mib: float | None
    """GPU memory of a call beyond all weights."""
    reference: str
    """The technique whose picture in eager float32 all are held to."""
    psnr_db: float | None
    """Against `reference`; None when no byte differs."""


@dataclass(frozen=True)
class Pipeline:
    """One run of the benchmark."""

    rows: list[PipelineRow]
    ratios: dict[str, dict[str, Ratio]]
    """By batch: how many times the technique after "over" is slower."""
    notes: list[str]
    """What was left out, and why."""

    def document(self) -> dict[str, Any]:
        """The run as plain JSON values."""
        return {
            "benchmark": "pipeline",
            "notes": self.notes,
            "ratios": {
                b: {k: asdict(r) for k, r in named.items()} for b, named in self.ratios.items()
            },
            "rows": [asdict(row) for row in self.rows],
        }


def bench_pipeline(
    model: str,
    place: Place,
    batches: Sequence[int],
    *,
    repeats: int = 9,
    without: Sequence[str] = (),
    show: Callable[[PipelineRow], None] = lambda _: None,
) -> Pipeline:
    """Hold every technique's picture to the reference, then time all in turns, batch by batch.

    Args:
        model: a bundle, or a preset for random weights.
        place: device and number format; the reference is float32 on the same device. Without diffusers the
            techniques that need it are left out, and the folded graph is the reference.
        batches: faces a call.
        repeats: rounds that count.
        without: techniques to leave out (compilation takes minutes).
        show: called with each row as it comes.

    Raises:
        UsageError: `without` names no technique, or in 16 bits those that all others are held to.
        ModelError: a picture is outside the contract; nothing of that batch is timed.
    """
    source = Source(model, place)
    every = techniques(source)
    if unknown := set(without) - {t.name for t in every}:
        raise UsageError(
            f"no technique {sorted(unknown)}; there are: {', '.join(t.name for t in every)}"
        )
    wanted = [t for t in every if t.name not in without and (source.diffusers or not t.diffusers)]
    count = inspect_preset if source.diffusers else inspect_graph
    ceilings, stages = measure_ceilings(place.device.type), count(source.preset)
    name, expected = reference(source)
    runs = {t.name: t.make() for t in wanted}
    done = Pipeline([], {}, _notes(source, every))
    for batch in batches:
        faces = _inputs(source.preset.size, batch)
        psnr = _gate(runs, expected, faces[0], place.dtype)
        timings = interleave(_turns(runs, faces), repeats=repeats, leading=1)
        done.ratios[str(batch)] = _ratios(timings)
        for technique in wanted:
            row = _row(source, technique, batch, timings[technique.name], ceilings, stages)
            peak = _peak(runs[technique.name], faces[0], place)
            quality = psnr[technique.name]
            done.rows.append(row(psnr_db=quality, peak_mib=peak, reference=name))
            show(done.rows[-1])
    return done


def _notes(source: Source, every: Sequence[Technique]) -> list[str]:
    if source.diffusers:
        return []
    names = ", ".join(technique.name for technique in every if technique.diffusers)
    return [
        f"diffusers is not installed: left out {names}; the reference is the folded graph in eager fp32, and FLOPs "
        "are the folded graph's"
    ]


def _inputs(size: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shape = (batch, size, size, 3)
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(INPUTS)
    ]


def _turns(runs: dict[str, Run], faces: list[Tensor]) -> dict[str, Callable[[], object]]:
    def turn(run: Run) -> Callable[[], object]:
        fresh = cycle(faces)
        return lambda: run(next(fresh))

    return {name: turn(run) for name, run in runs.items()}


def _gate(
    runs: dict[str, Run], expected: Run, faces: Tensor, dtype: str
) -> dict[str, float | None]:
    """PSNR of every technique; in 16 bits none may be twice as far from float32 as plain diffusers in 16 bits is.

    Without diffusers the folded graph on torch's own ops takes its place.
    """
    exact = expected(faces)
    errors = {name: _rms(run(faces), exact) for name, run in runs.items()}
    allowed = 255 / 10 ** (LEAST_PSNR / 20)
    if dtype != "fp32":
        plain = next((errors[name] for name in (DIFFUSERS, FOLDED) if name in errors), None)
        if plain is None:
            raise UsageError(
                f"{dtype} is held to {DIFFUSERS!r} or {FOLDED!r} in {dtype}, and both are left out"
            )
        allowed = 2 * plain + BAND
    for name, error in errors.items():
        if not error <= allowed:
            raise ModelError(
                f"{name} returns another picture: {_db(error)} dB from eager float32; allowed: "
                f"{_db(allowed)}. Nothing was timed"
            )
    return {name: _db(error) for name, error in errors.items()}


def _rms(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).square().mean().sqrt().item()


def _db(error: float) -> float | None:
    return round(20 * math.log10(255 / error), 2) if error else None


def _ratios(timings: dict[str, Timing]) -> dict[str, Ratio]:
    """Ours over each peer; "default" is what `--backend auto` runs: CUDA graphs, or the fastest on a CPU.

    "folded over unfolded" is on fr_kernels on both sides where a CPU has them, as the default is, and then again on
    torch's own ops.
    """
    ours = [name for name in (FOLDED, KERNELS, ONNX) if name in timings]
    default = GRAPHS if GRAPHS in timings else min(ours, key=lambda n: min(timings[n].samples))
    folded, plain = "folded over unfolded", (UNFOLDED, FOLDED)
    pairs = {folded: plain}
    if UNFOLDED_KERNELS in timings:
        pairs = {folded: (UNFOLDED_KERNELS, KERNELS), f"{folded}, torch's own ops": plain}
    pairs |= {
        "default over diffusers eager": (DIFFUSERS, default),
        "default over diffusers compile": (COMPILED, default),
    }
    return {
        name: ratio(timings[slow], timings[fast])
        for name, (slow, fast) in pairs.items()
        if slow in timings and fast in timings
    }


def _row(
    source: Source,
    technique: Technique,
    batch: int,
    timing: Timing,
    ceilings: Ceilings,
    stages: list[Stage],
) -> Callable[..., PipelineRow]:
    best, p20, p50, p80 = (round(timing.milliseconds(p), 3) for p in (0, 20, 50, 80))
    counted = stages[0].form
    rate = totals(stages, counted).gflop * batch / p50
    launches = totals(stages, technique.form).total_launches if technique.form else None
    device = source.place.device
    return lambda **measured: PipelineRow(
        **asdict(this_machine()),
        **ceilings._asdict(),
        **measured,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=gpu_name(device) if device.type == "cuda" else "cpu",
        model=source.name,
        random_weights=source.random,
        dtype=source.place.dtype,
        batch=batch,
        technique=technique.name,
        repeats=len(timing.samples),
        best_ms=best,
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        images_per_s=round(1e3 * batch / p50, 3),
        tflop_per_s=round(rate, 3),
        share_of_matmul=round(rate / ceilings.matmul_tflop_per_s, 3),
        launches=launches,
        counted=counted,
    )


def _peak(run: Run, faces: Tensor, place: Place) -> float | None:
    if place.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(place.device)
    before = torch.cuda.memory_allocated(place.device)
    run(faces)
    return round((torch.cuda.max_memory_allocated(place.device) - before) / 2**20, 1)
