"""The pipeline bench and the GPU suite on a machine that has torch and Triton alone."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fr_bench.gpu_suite import STEPS, read_outcomes
from fr_bench.random_graph import random_graph
from fr_bench.techniques import (
    COMPILED,
    DIFFUSERS,
    FOLDED,
    KERNELS,
    ONNX,
    UNFOLDED,
    UNFOLDED_KERNELS,
    Source,
)
from fr_deploy.bundle import load_graph
from fr_deploy.models.inspect import inspect_graph, totals
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.devices import Place
from fr_kernels.native import obstacle

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
TOY = PRESETS["lafr-toy"]


@pytest.fixture
def without(tmp_path: Path) -> dict[str, str]:
    """An environment whose interpreters, and those they start, cannot import diffusers."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['diffusers'] = None\n")
    path = [str(folder), *filter(None, sys.path)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "FR_DEPLOY_CACHE": str(tmp_path / "cache"),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_peers_are_left_out_with_a_note(tmp_path: Path, without: dict[str, str]) -> None:
    arguments = ["bench", "pipeline", "--model", "lafr-toy", "--device", "cpu", "--repeats", "3"]
    # A technique that is not there may still be left out by name, as the suite does.
    arguments += ["--without", COMPILED, "-o", str(tmp_path)]
    command = [sys.executable, "-m", "fr_deploy", *arguments]
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    native = [] if obstacle("conv3x3") else [KERNELS]
    left_out = [DIFFUSERS, COMPILED, UNFOLDED, *([UNFOLDED_KERNELS] if native else [])]
    note = f"diffusers is not installed: left out {', '.join(left_out)}; "
    assert sum(line.startswith(note) for line in done.stdout.splitlines()) == 1
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["notes"][0].startswith(note)
    assert document["ratios"] == {"1": {}}
    with (tmp_path / "pipeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["technique"] for row in rows] == [FOLDED, *native, ONNX]
    assert rows[0]["psnr_db"] == "", "the reference itself"
    assert float(rows[1]["psnr_db"] or "inf") > 60
    gflop = totals(inspect_graph(TOY), "graph").gflop
    for row in rows:
        assert (row["reference"], row["counted"], row["random_weights"]) == (
            FOLDED,
            "graph",
            "True",
        )
        assert float(row["tflop_per_s"]) == pytest.approx(gflop / float(row["p50_ms"]), abs=6e-4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pipeline_part_rehearsed(tmp_path: Path, without: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "fr_bench.gpu_suite",
        "pipeline",
        "--rehearse",
        "--minutes",
        "18",
    ]
    done = subprocess.run(
        [*command, "-o", str(tmp_path)], env=without, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    outcomes = read_outcomes(tmp_path)
    assert len(outcomes) == sum(step.part == "pipeline" for step in STEPS)
    assert all(o.passed for o in outcomes)
    assert "diffusers is not installed" in outcomes[-1].tail


@pytest.fixture
def uninitialised_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialised_is_nan")
@pytest.mark.parametrize("name", ["lafr-toy", "lafr-mini"])
def test_every_weight_is_drawn_and_the_same_again(name: str) -> None:
    one, other = random_graph(PRESETS[name], CPU), random_graph(PRESETS[name], CPU)
    assert not RestorationGraph(PRESETS[name]).encoder.conv_in.weight.isfinite().all(), (
        "nothing was left to draw"
    )
    for (key, drawn), again in zip(one.named_parameters(), other.parameters(), strict=True):
        assert drawn.isfinite().all(), key
        assert torch.equal(drawn, again), key


def test_weights_and_pictures_are_as_wide_as_a_folded_models() -> None:
    torch.manual_seed(0)
    drawn, folded = random_graph(TOY, CPU), RestorationGraph.of(LafrModel(TOY).eval())
    for (key, ours), theirs in zip(drawn.named_parameters(), folded.parameters(), strict=True):
        if ours.ndim > 1:
            assert 0.5 < ours.square().mean().sqrt() / theirs.square().mean().sqrt() < 2, key
    faces = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        spread = [graph.picture(faces).std() for graph in (drawn, folded)]
    assert 0.5 < spread[0] / spread[1] < 2
    assert 20 < spread[0] < 80, "a picture of bytes, neither grey nor black and white"


def test_full_size_is_built_on_the_device_asked_for() -> None:
    graph = random_graph(PRESETS["lafr-sd21"], torch.device("meta"))
    assert {parameter.device.type for parameter in graph.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in graph.parameters()) > 8e8


def test_a_bundle_is_the_same_graph_with_diffusers_and_without() -> None:
    made = Source("lafr-mini", Place(CPU, "fp32")).graph().state_dict()
    expected = load_graph("lafr-mini").state_dict()
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key]) for key in made)
