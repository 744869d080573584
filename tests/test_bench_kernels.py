"""`fr-deploy bench kernels` on a CPU: errors and counts, no times; an op outside its budget stops the run."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner, Result

from fr_bench import kernel_rows, kernels
from fr_bench.case import Case
from fr_bench.ceilings import Ceilings
from fr_bench.cli import bench
from fr_bench.kernel_cases import cases
from fr_deploy.errors import ModelError, UsageError
from fr_kernels.budget import budget
from fr_kernels.dispatch import ops_with_launches
from fr_kernels.native import obstacle


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, ["kernels", *arguments])


def test_a_cpu_checks_and_counts_but_gives_no_time() -> None:
    done = run("--op", "phase_shuffle", "--op", "nearest_code", "--dtype", "fp32")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "they need a GPU" in lines[-2]
    document = json.loads(lines[-1])
    assert document["rows"] == []
    checked = {
        (c["op"], c["impl"]): c for c in document["checked"] if not c["shape"].endswith("backward")
    }
    ops = ("nearest_code", "phase_shuffle")
    native = {("nearest_code", "cpu")} if not obstacle("nearest_code") else set()
    assert set(checked) == native | {(op, impl) for op in ops for impl in ("reference", "triton")}
    assert checked["nearest_code", "triton"]["flops"] == 2 * 300 * 128 * 64
    assert checked["phase_shuffle", "triton"]["bytes"] == 4 * (2 * 32 * 10 * 10 + 2 * 8 * 18 * 18)


def test_a_case_that_runs_its_backward_counts_its_launches() -> None:
    case = next(case for case in cases() if case.op == "soft_lookup" and case.on_cpu)
    checked, _ = kernels.check(case, "reference", "fp32", torch.device("cpu"))
    assert checked.launches == 2 + 4


def test_training_cases_hold_every_gradient_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases() if case.op == "sdfm_gate" and case.backward)
    inputs = case.inputs(torch.device("cpu"), torch.float32)
    gradients = case.ours(*inputs, impl="reference")
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    spoilt = replace(
        case, ours=lambda *i, impl: (*case.ours(*i, impl=impl)[:-1], torch.zeros_like(i[-1]))
    )
    with pytest.raises(ModelError, match="forward and backward fp32"):
        kernels.check(spoilt, "reference", "fp32", torch.device("cpu"))


def test_rows_say_rates_beside_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times that a GPU did not make: 1 ms ours, 2 ms eager."""
    case = next(case for case in cases() if case.op == "phase_shuffle" and case.on_cpu)
    checked, inputs = kernels.check(case, "reference", "fp32", torch.device("cpu"))
    monkeypatch.setattr(kernels, "gpu_name", lambda _: "a GPU")
    times = {"fr_kernels": 1e-3, "eager": 2e-3}
    monkeypatch.setattr(
        kernels,
        "time_on_gpu",
        lambda calls, captured: {name: (times[name],) * 3 for name in calls},
    )
    ours, eager = kernels.time_case(case, checked, inputs, ("eager",), Ceilings(4000.0, 700.0))
    assert (ours.technique, eager.technique, ours.repeats) == ("fr_kernels", "eager", 3)
    assert (ours.p50_us, eager.p50_us) == (1000, 2000)
    assert ours.gb_per_s == round(checked.bytes / 1e-3 / 1e9, 1)
    assert "of 4000.0 GB/s" in kernel_rows.time_line(ours)


def test_every_case_has_a_small_shape_and_declared_launches() -> None:
    small = {case.op for case in cases() if case.on_cpu}
    assert small == {case.op for case in cases()} <= set(ops_with_launches())


def _wrong(case: Case) -> Case:
    return replace(case, ours=lambda *inputs, impl: case.ours(*inputs, impl=impl) * 1.01)


def test_an_op_outside_its_budget_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases() if case.op == "phase_shuffle" and case.on_cpu)
    monkeypatch.setattr(kernels, "cases", lambda: [_wrong(case)])
    with pytest.raises(ModelError, match="Nothing was timed"):
        kernels.bench_kernels(
            ["phase_shuffle"], ("eager",), ("fp32",), lambda _: None, lambda _: None
        )


def test_unknown_op() -> None:
    with pytest.raises(UsageError, match=r"no op nothing; there are: .*sdfm_gate"):
        kernels.known_ops(["nothing"])


def test_the_budget_sees_an_error_and_a_nan() -> None:
    exact = torch.linspace(-3, 3, 100, dtype=torch.float64)
    eager = exact.half()
    assert budget(eager, eager, exact).kept
    assert not budget(eager * 1.01, eager, exact).kept
    assert not budget(eager.where(eager > -2, torch.nan), eager, exact).kept
    assert budget(eager[:0], eager[:0], exact[:0]).kept
    with pytest.raises(ValueError, match="one dtype"):
        budget(exact.float(), eager, exact)
