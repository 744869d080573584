"""fr-deploy bench restore, on a small bundle with random weights."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from fr_bench.cli import bench
from fr_bench.machine import this_machine
from fr_bench.plain_diffusers import PlainDiffusers
from fr_bench.restore import bench_restore, require
from fr_bench.rows import Row, append_rows, header
from fr_bench.timing import Timing, interleave, ratio
from fr_deploy.bundle import load_bundle, save_bundle
from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.runtime.agreement import Agreement, agree, random_pictures


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bench") / "toy"
    save_bundle(LafrModel(PRESETS["lafr-toy"]), folder)
    return folder


def test_the_last_line_is_one_json_document_and_the_rows_are_kept(
    bundle: Path, tmp_path: Path
) -> None:
    arguments = ["restore", "--model", str(bundle), "--repeats", "3", "-o", str(tmp_path)]
    for _ in range(2):
        done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["ratio"]["p20"] <= document["ratio"]["p50"] <= document["ratio"]["p80"]
    assert {len(samples) for samples in document["milliseconds"].values()} == {3}
    lines = (tmp_path / "restore.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == document
    with (tmp_path / "restore.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == header(Row) == [field.name for field in fields(Row)]
    assert [row["technique"] for row in rows] == ["fr-deploy", "plain diffusers"] * 2
    assert all(0 < float(row["best_ms"]) <= float(row["p50_ms"]) for row in rows)
    assert all(row["size"] == "64" for row in rows)


def test_other_pictures_stop_the_run_before_timing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = PlainDiffusers.__call__
    monkeypatch.setattr(PlainDiffusers, "__call__", lambda self, face: call(self, face).flip(1))
    with pytest.raises(ModelError, match=r"different pictures: .* Nothing was timed"):
        bench_restore(str(bundle), repeats=3)


def test_plain_diffusers_computes_what_the_model_defines(bundle: Path) -> None:
    model = load_bundle(bundle)
    faces = random_pictures(64)
    image = faces.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = ((model(image) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert agree(PlainDiffusers(model)(faces), expected).largest <= 1


def test_one_level_everywhere_agrees_and_a_blot_does_not() -> None:
    require(Agreement(1, 1.0, 1, 48.1))
    require(Agreement(1, 0.01, 2, 72.2))
    with pytest.raises(ModelError, match=r"by 62 of 255 at most, 28\.1 dB; .* Nothing was timed"):
        require(Agreement(1, 0.1, 62, 28.1))


def test_rounds_alternate_and_only_counted_rounds_are_kept() -> None:
    order: list[str] = []
    seconds = iter(float(t * t) for t in range(100))
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timings = interleave(calls, repeats=2, warmups=1, clock=lambda: next(seconds))
    assert order == ["b", "a", "a", "b", "b", "a"]
    # Call i runs from (2 i)^2 to (2 i + 1)^2, so it takes 4 i + 1.
    assert timings["a"].samples == (4 * 2 + 1, 4 * 5 + 1)
    assert timings["b"].samples == (4 * 3 + 1, 4 * 4 + 1)


def test_the_ratio_is_taken_of_the_best_and_round_by_round() -> None:
    result = ratio(Timing((2.0, 30.0, 4.0)), Timing((1.0, 10.0, 1.0)))
    assert (result.p50, result.p20, result.p80) == pytest.approx((3.0, 2.4, 3.6))
    assert result.best == 2
    assert Timing((0.3, 0.1, 0.2)).milliseconds(0) == pytest.approx(100)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 calls and 9 repeats"):
        interleave({})


def test_calls_before_a_timed_one_do_not_count() -> None:
    seconds = iter([0.0, 1.0, 1.0, 3.0])
    made: list[str] = []
    calls = {name: lambda name=name: made.append(name) for name in ("a", "b")}
    timings = interleave(calls, repeats=1, warmups=0, leading=2, clock=lambda: next(seconds))
    assert made == ["a"] * 3 + ["b"] * 3
    assert (timings["a"].samples, timings["b"].samples) == ((1.0,), (2.0,))


def test_a_file_with_other_columns_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "restore.csv"
    path.write_text("technique,ms\nours,1\n")
    with pytest.raises(UsageError, match="other columns"):
        append_rows(path, [])
    assert path.read_text() == "technique,ms\nours,1\n"


def test_the_machine_names_its_source() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.torch == torch.__version__
