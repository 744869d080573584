"""`fr-deploy export engine` end to end."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from engine_cases import export
from fr_deploy.cli import main


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cli") / "x.onnx", torch.float16)


def run(file: Path, output: Path, *given: str) -> Result:
    return CliRunner().invoke(main, ["export", "engine", str(file), "-o", str(output), *given])


def test_a_dry_run_builds_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(file, tmp_path / "x.engine", "--dry-run", "--batches", "1", "--batches", "8")
    assert done.exit_code == 0, done.output
    assert re.search(
        r"0\.0 MB of weights; an engine of about 5 MB, .* takes up to 0\.5 GB", done.stdout
    )
    monkeypatch.setattr("fr_export.engine_estimate.free_memory", lambda: 1000)
    done = run(file, tmp_path / "x.engine", "--dry-run")
    assert done.exit_code == 6
    assert "does not fit" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_build(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    done = run(file, tmp_path / "x.engine", "--compute-capability", "8.9")
    assert done.exit_code == 0, done.output
    size = (tmp_path / "x.engine").stat().st_size / 1e6
    assert f"x.engine  {size:.1f} MB, tensorrt-rtx 1." in done.stdout
    assert "compute capability 8.9\n" in done.stdout
    assert "100% of the multiplications in half precision" in done.stdout
    assert "Building engine" in done.stderr


def test_refusals(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'fr-deploy[rtx]'")
    for given, code, words in (
        (["--dtype", "fp32"], 5, "float32 is asked for"),
        (["--batches", "8:1"], 2, "allowed are LEAST:BEST:MOST"),
        (["--compute-capability", "9.0"], 2, "take full TensorRT"),
    ):
        done = run(file, tmp_path / "x.engine", *given)
        assert (done.exit_code, words in done.stderr) == (code, True), done.output
    assert not list(tmp_path.iterdir())
