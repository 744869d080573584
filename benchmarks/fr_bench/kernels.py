"""`fr-deploy bench kernels`: every op against float64 and eager code first, then, on a GPU, against peers in time."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fr_bench.case import Case, Inputs, Outputs
from fr_bench.ceilings import Ceilings, gpu_name, measure_ceilings
from fr_bench.kernel_cases import cases
from fr_bench.kernel_rows import Checked, KernelRow
from fr_bench.machine import Machine, this_machine
from fr_bench.timing import Timing
from fr_deploy.errors import ModelError, UsageError
from fr_kernels.budget import Budget, budget
from fr_kernels.clock import time_on_gpu
from fr_kernels.dispatch import declared_launches, interpreting
from fr_kernels.native import obstacle

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "uint8": torch.uint8,
}


_WITHOUT = {"triton": ("bf16",), "cpu": ("fp16", "bf16")}
"""On a CPU: Triton's interpreter multiplies bfloat16 wrongly, and the CPU's forms are float32."""


def known_ops(wanted: Sequence[str]) -> list[str]:
    """The ops to run: those wanted, or all.

    Raises:
        UsageError: one of them does not exist.
    """
    every = sorted({case.op for case in cases()})
    if unknown := sorted(set(wanted) - set(every)):
        raise UsageError(f"no op {', '.join(unknown)}; there are: {', '.join(every)}")
    return list(wanted) or every


def check(case: Case, impl: str, dtype: str, device: torch.device) -> tuple[Checked, Inputs]:
    """Hold one implementation to its error budget on this device, and count its work.

    Raises:
        ModelError: the error is above the budget; nothing may be timed.
    """
    torch.manual_seed(0)
    inputs = case.inputs(device, DTYPES[dtype])
    got = _outputs(case.ours(*inputs, impl=impl))
    kept = _worst(case, got, inputs)
    if not kept.kept:
        raise ModelError(
            f"{case.op} ({impl}) {case.shape} {dtype}: error {kept.error:.3g} against float64, allowed "
            f"{kept.allowed:.3g}. Nothing was timed"
        )
    tensors = [t for t in (*inputs, *got) if isinstance(t, Tensor)]
    moved = case.moved(*inputs) if case.moved else sum(t.nbytes for t in tensors)
    run = (case.op, case.backward) if case.backward else (case.op,)
    launches = sum(declared_launches(op, *case.launched(*inputs)) for op in run)
    checked = Checked(
        op=case.op,
        impl=impl,
        shape=case.shape,
        dtype=dtype,
        error=kept.error,
        allowed=kept.allowed,
        flops=_flops(case, inputs),
        bytes=moved,
        launches=launches,
        registers=_registers(case.op),
    )
    return checked, inputs


def _worst(case: Case, got: Outputs, inputs: Inputs) -> Budget:
    """Of the outputs' budgets the one that is nearest to being broken."""
    doubled = _in_double(inputs)
    eager, exact = _outputs(case.eager(*inputs)), _outputs(case.eager(*doubled))
    kept = [
        budget(
            _compared(case, mine, inputs),
            _compared(case, theirs, inputs),
            case.compared(true, *doubled),
        )
        for mine, theirs, true in zip(got, eager, exact, strict=True)
    ]
    return min(kept, key=lambda b: (b.kept, b.allowed / b.error if b.error else float("inf")))


def _outputs(result: Tensor | Outputs) -> Outputs:
    return result if isinstance(result, tuple) else (result,)


def _compared(case: Case, output: Tensor, inputs: Inputs) -> Tensor:
    compared = case.compared(output, *inputs)
    # A measure of the output (a distance) is held to float32, in which the contract has it computed.
    return compared.float() if compared.dtype == torch.float64 else compared


def _in_double(inputs: Inputs) -> Inputs:
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) else t, inputs)


def _flops(case: Case, inputs: Inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        case.ours(*inputs, impl="reference")
    return int(counter.get_total_flops())


def _registers(op: str) -> int | None:
    codebook = ("nearest_code", "soft_lookup", "differentiable_argmin")
    faces = op in ("cut_faces", "paste_faces")
    name, column = ("aot_cuda.csv", "source") if faces else ("aot.csv", "op")
    kernels = "face_warp" if faces else "codebook" if op in codebook else op
    table = Path(__file__).parents[2] / "kernels" / name
    if not table.exists():
        return None
    with table.open() as file:
        rows = [r for r in csv.DictReader(file) if r[column] == kernels and r["sm"] == "90"]
    return max((int(row["registers"]) for row in rows), default=None)


def techniques(case: Case, peers: Sequence[str]) -> dict[str, Callable[..., Tensor | Outputs]]:
    """Ours and the peers asked for that this case has, by name."""
    calls: dict[str, Callable[..., Tensor | Outputs]] = {
        "fr_kernels": lambda *inputs: case.ours(*inputs, impl=case.compiled)
    }
    if "eager" in peers:
        calls["eager"] = case.eager
    if "compile" in peers:
        calls["compile"] = torch.compile(case.eager, mode="max-autotune-no-cudagraphs")
    return calls | {name: call for name, call in case.peers.items() if name in peers}


def time_case(
    case: Case, checked: Checked, inputs: Inputs, peers: Sequence[str], ceilings: Ceilings
) -> list[KernelRow]:
    """One row per technique, timed in turns with a cold L2; on the GPU of the inputs."""
    machine, date = this_machine(), datetime.now(UTC).isoformat(timespec="seconds")
    calls = {
        name: (lambda call=call: call(*inputs)) for name, call in techniques(case, peers).items()
    }
    gpu = gpu_name(inputs[0].device)
    return [
        _row(machine, date, gpu, checked, name, Timing(taken), ceilings)
        for name, taken in time_on_gpu(calls, captured=case.captured).items()
    ]


def _row(
    machine: Machine,
    date: str,
    gpu: str,
    checked: Checked,
    technique: str,
    timing: Timing,
    ceilings: Ceilings,
) -> KernelRow:
    p20, p50, p80 = (timing.milliseconds(p) * 1e3 for p in (20, 50, 80))
    known = {k: v for k, v in asdict(checked).items() if k in KernelRow.__dataclass_fields__}
    return KernelRow(
        **asdict(machine),
        **known,
        **ceilings._asdict(),
        date=date,
        gpu=gpu,
        technique=technique,
        repeats=len(timing.samples),
        p20_us=round(p20, 2),
        p50_us=round(p50, 2),
        p80_us=round(p80, 2),
        gb_per_s=round(checked.bytes / p50 / 1e3, 1),
        tflop_per_s=round(checked.flops / p50 / 1e6, 2),
    )


def bench_kernels(
    wanted: Sequence[str],
    peers: Sequence[str],
    dtypes: Sequence[str],
    on_checked: Callable[[Checked], None],
    on_row: Callable[[KernelRow], None],
) -> tuple[dict[str, Any], list[KernelRow]]:
    """Check every case; where a GPU is, time it too. Returns the whole run as plain JSON values, and the rows.

    Raises:
        UsageError: a peer was asked for that is not installed.
        ModelError: an op is outside its error budget.
    """
    if "xformers" in peers:
        _need_xformers()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    ceilings = measure_ceilings() if on_gpu else None
    done: list[Checked] = []
    rows: list[KernelRow] = []
    for case in cases():
        if case.op not in wanted or (not on_gpu and not case.on_cpu):
            continue
        fitting = [dtype for dtype in dtypes if dtype in case.dtypes]
        for dtype, impl in product(fitting, _implementations(case, on_gpu)):
            if not on_gpu and dtype in _WITHOUT.get(impl, ()):
                continue
            checked, inputs = check(case, impl, dtype, device)
            done.append(checked)
            on_checked(checked)
            if ceilings is not None:
                new = time_case(case, checked, inputs, peers, ceilings)
                rows += new
                for row in new:
                    on_row(row)
    document = {
        "benchmark": "kernels",
        "device": gpu_name(device) if on_gpu else "cpu",
        "checked": [asdict(c) for c in done],
        "rows": [asdict(row) for row in rows],
        "machine": asdict(this_machine()),
    }
    return document, rows


def _implementations(case: Case, on_gpu: bool) -> tuple[str, ...]:
    if on_gpu:
        return (case.compiled,)
    interpreted = case.compiled == "triton" and interpreting() and find_spec("triton") is not None
    native = case.native and not obstacle(case.op)
    return ("reference", *["triton"] * interpreted, *["cpu"] * native)


def _need_xformers() -> None:
    if find_spec("xformers") is None:
        raise UsageError('peer "xformers" is not installed: pip install "fr-deploy[gpu]"')
