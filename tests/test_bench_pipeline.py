"""fr-deploy bench pipeline and the GPU suite, tiny, on a CPU."""

import csv
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from fr_bench import pipeline, techniques
from fr_bench.cli import bench
from fr_bench.gpu_suite import PARTS, STEPS, read_outcomes, run_suite
from fr_bench.pipeline import PipelineRow, bench_pipeline
from fr_bench.techniques import (
    COMPILED,
    DIFFUSERS,
    FOLDED,
    KERNELS,
    ONNX,
    UNFOLDED,
    UNFOLDED_KERNELS,
)
from fr_bench.verification import BEGIN, END, Outcome, section, write_section
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.runtime.devices import Place
from fr_kernels.native import obstacle

CPU = Place(torch.device("cpu"), "fp32")
ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_ratios_and_the_last_line(tmp_path: Path) -> None:
    arguments = [
        "pipeline",
        "--model",
        "lafr-toy",
        "--device",
        "cpu",
        "--batch",
        "1",
        "--batch",
        "3",
    ]
    arguments += ["--repeats", "3", "--without", COMPILED, "-o", str(tmp_path)]
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["ratios"]) == {"1", "3"}
    native = [] if obstacle("conv3x3") else [UNFOLDED_KERNELS, KERNELS]
    again = ["folded over unfolded, torch's own ops"] if native else []
    ratios = ["folded over unfolded", *again, "default over diffusers eager"]
    assert list(document["ratios"]["1"]) == ratios
    with (tmp_path / "pipeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [field.name for field in fields(PipelineRow)]
    names = [DIFFUSERS, UNFOLDED, FOLDED, *native, ONNX]
    assert [row["technique"] for row in rows] == names * 2
    assert [row["batch"] for row in rows] == ["1"] * len(names) + ["3"] * len(names)
    for row in rows:
        assert row["random_weights"] == "True"
        assert (row["reference"], row["counted"]) == (DIFFUSERS, "model")
        assert float(row["psnr_db"] or "inf") > 60
        assert float(row["images_per_s"]) == pytest.approx(
            1e3 * int(row["batch"]) / float(row["p50_ms"]), rel=1e-3
        )
    by_name = {row["technique"]: row for row in rows}
    assert int(by_name[FOLDED]["launches"]) < int(by_name[UNFOLDED]["launches"])
    assert by_name[ONNX]["launches"] == ""


def test_another_picture_stops_the_run_before_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = techniques._torch

    def mirrored(*given: object, **named: object) -> techniques.Run:
        run = made(*given, **named)  # pyright: ignore[reportArgumentType]
        return lambda faces: run(faces).flip(2)

    monkeypatch.setattr(techniques, "_torch", mirrored)
    monkeypatch.setattr(pipeline, "interleave", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(ModelError, match=r"folded returns another picture: .* Nothing was timed"):
        bench_pipeline("lafr-toy", CPU, [1], without=[COMPILED, ONNX])


def test_in_16_bits_nothing_may_be_twice_as_far_off_as_plain_diffusers() -> None:
    exact = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    runs: dict[str, techniques.Run] = {
        DIFFUSERS: lambda faces: faces + 2,
        FOLDED: lambda faces: faces + 4,
    }
    assert pipeline._gate(runs, lambda faces: faces, exact, "fp16")[FOLDED] == 36.09
    runs[FOLDED] = lambda faces: faces + 5
    with pytest.raises(ModelError, match=r"folded returns another picture: 34\.15 dB"):
        pipeline._gate(runs, lambda faces: faces, exact, "fp16")

    # Without diffusers the folded graph is what the others are held to; without both nothing can be.
    del runs[DIFFUSERS]
    runs |= {FOLDED: lambda faces: faces + 2, ONNX: lambda faces: faces + 4}
    assert pipeline._gate(runs, lambda faces: faces, exact, "fp16")[ONNX] == 36.09
    with pytest.raises(UsageError, match="both are left out"):
        pipeline._gate({ONNX: runs[ONNX]}, lambda faces: faces, exact, "fp16")

    def broken(faces: Tensor) -> Tensor:
        return torch.full(faces.shape, torch.nan)

    with pytest.raises(ModelError, match="folded returns another picture"):
        pipeline._gate({FOLDED: broken}, lambda faces: faces, exact, "fp32")


def test_an_unknown_technique_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no technique \['eager'\]; there are: diffusers eager, "):
        bench_pipeline("lafr-toy", CPU, [1], without=["eager"])


def outcome(**changed: object) -> Outcome:
    given: dict[str, object] = {
        "part": "kernels", "name": "tests", "proves": "all", "passed": True, "seconds": 1.0, "rehearsed": False,
        "device": "H", "date": "2026-01-02T03:04:05", "commit": "0123456789abcdef", "torch": "2", "triton": "3",
        "tail": "",
    }  # fmt: skip
    return Outcome(**(given | changed))  # pyright: ignore[reportArgumentType]


def test_a_document_says_the_latest_outcome_of_each_step_and_no_rehearsal(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(page, [outcome(passed=False), outcome(), outcome(name="b", rehearsed=True)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| kernels: tests | all | H | passed | 2026-01-02 | 0123456789 | 2, 3 |" in text
    assert "old" not in text
    assert "failed" not in text
    assert "b |" not in text


def test_the_committed_document_is_what_the_committed_results_say() -> None:
    text = (ROOT / "docs" / "verification.md").read_text()
    written = text.split(BEGIN)[1].split(END)[0].lstrip("\n")
    assert written == section(read_outcomes(ROOT / "benchmarks" / "results"))


def test_a_step_that_passed_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def record(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        failed = "conv_shapes" in command[2]
        return subprocess.CompletedProcess(command, int(failed), "printed\n")

    monkeypatch.setattr("fr_bench.gpu_suite.subprocess.run", record)
    monkeypatch.setattr("fr_bench.gpu_suite.this_machine", lambda: outcome())
    first = run_suite(["kernels"], tmp_path, minutes=9, rehearse=True, again=False)
    assert [o.passed for o in first] == [True, True, False, True]
    assert [o.passed for o in read_outcomes(tmp_path)] == [True, True, False, True]
    calls.clear()
    run_suite(["kernels"], tmp_path, minutes=9, rehearse=True, again=False)
    assert len(calls) == 1
    assert "conv_shapes" in calls[0][2]
    calls.clear()
    assert run_suite(["kernels"], tmp_path, minutes=0, rehearse=True, again=True) == []
    assert not calls


def test_a_step_that_takes_too_long_keeps_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(command: list[str], **named: object) -> None:
        raise subprocess.TimeoutExpired(command, 1, output=b"so far")

    monkeypatch.setattr("fr_bench.gpu_suite.this_machine", lambda: outcome())
    monkeypatch.setattr("fr_bench.gpu_suite.subprocess.run", late)
    (done,) = run_suite(["pipeline"], tmp_path, minutes=1.1, rehearse=True, again=False)[:1]
    assert not done.passed
    assert done.tail.startswith("so far\nstopped after ")


def test_kernels_are_measured_without_diffusers() -> None:
    """As on a GPU machine that has torch and Triton alone."""
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import fr_bench.conv_shapes, fr_bench.gpu_suite, fr_bench.kernels\n"
        "from fr_bench.machine import this_machine; print(this_machine().torch)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == torch.__version__, done.stderr


def test_parts_fit_into_their_time() -> None:
    assert {step.part for step in STEPS} == set(PARTS)
    assert max(step.seconds for step in STEPS) <= 510
    names = [(step.part, step.name) for step in STEPS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_suite_rehearsed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fr_bench.gpu_suite", "--rehearse", "--minutes", "18", "-o", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert len(read_outcomes(tmp_path)) == len(STEPS)
    assert all(o.rehearsed and o.passed for o in read_outcomes(tmp_path))
