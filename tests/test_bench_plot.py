"""The plot of pipeline.csv: which rows it takes, what it says of them, and the picture itself."""

import sys
from pathlib import Path
from typing import Any

import pytest

from fr_bench import plot
from fr_bench.pipeline import PipelineRow
from fr_bench.rows import append_rows
from fr_bench.series import Point, read_series
from fr_deploy.errors import NoInputError, ResourceError, UsageError

MACHINE: dict[str, Any] = {
    "cpu": "AMD EPYC", "cores": 4, "threads": 2, "load": 0.25, "python": "3.11", "torch": "2.13.0", "diffusers": "0.42",
    "fr_deploy": "0.1.0", "commit": "0123456789abcdef", "dirty": False, "date": "2026-01-01", "device": "cpu",
    "model": "lafr-toy", "random_weights": True, "dtype": "fp32", "repeats": 9, "best_ms": 1.0, "images_per_s": 0.0,
    "tflop_per_s": 1.0, "share_of_matmul": 0.5, "matmul_tflop_per_s": 0.1, "copy_gb_per_s": 9.0, "launches": None,
    "counted": "model", "peak_mib": None, "reference": "eager", "psnr_db": 70.0,
}  # fmt: skip


def row(technique: str, batch: int, p50: float, **other: Any) -> PipelineRow:
    times = {"p20_ms": p50 / 2, "p50_ms": p50, "p80_ms": 2 * p50}
    return PipelineRow(**MACHINE | times | {"technique": technique, "batch": batch} | other)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs on a CPU, the second without batch 4; then a GPU's."""
    path, again = tmp_path / "pipeline.csv", {"matmul_tflop_per_s": 0.2, "dirty": True}
    gpu = {"device": "NVIDIA H100", "dtype": "fp16", "commit": "fedcba9876543210"}
    rows = [
        row(name, batch, 10 * batch) for batch in (1, 4) for name in ("eager", "folded", "graph")
    ]
    rows += [row("eager", 1, 100, **again), row("folded", 1, 50, **again)]
    append_rows(path, [*rows, row("graph", 8, 4, **gpu)], PipelineRow)
    return path


def test_of_every_batch_the_latest_run_alone(results: Path) -> None:
    series = read_series(results, device="cpu")
    assert series.at(1) == [Point("eager", 1, 5, 10, 20), Point("folded", 1, 10, 20, 40)]
    assert [(p.technique, p.median) for p in series.at(4)] == [
        ("eager", 100),
        ("folded", 100),
        ("graph", 100),
    ]
    over = {name: [p.batch for p in points] for name, points in series.techniques().items()}
    assert over == {"eager": [1, 4], "folded": [1, 4], "graph": [4]}


def test_the_title_says_what_was_measured_on_and_what_weakens_it(results: Path) -> None:
    assert read_series(results, device="cpu").title == (
        "lafr-toy (random weights), fp32, AMD EPYC, 2 threads\nfr_deploy 0.1.0, torch 2.13.0, diffusers 0.42, "
        "commit 0123456789 + changes, 0123456789, load before 0.25 or less"
    )
    last = read_series(results, device=None, model=None, dtype=None)
    assert last.title.startswith("lafr-toy (random weights), fp16, NVIDIA H100\n")
    assert last.points == [Point("graph", 8, 1000, 2000, 4000)]


def test_what_is_not_there_is_named_with_what_is(results: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"no row of device tpu; .*\n  cpu \| AMD EPYC \| lafr-toy \| fp32\n  NVIDIA",
    ):
        read_series(results, device="tpu")
    with pytest.raises(UsageError, match="batch 2 was not measured; there are: 1, 4"):
        read_series(results, device="cpu").at(2)
    with pytest.raises(NoInputError, match="make it with: fr-deploy bench pipeline -o "):
        read_series(tmp_path / "absent.csv")
    lines = results.read_text().splitlines()
    (tmp_path / "empty.csv").write_text(lines[0] + "\n")
    with pytest.raises(NoInputError, match="has no row"):
        read_series(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("date,batch\n1,1\n")
    with pytest.raises(UsageError, match=r"lacks columns of .*: best_ms, commit,"):
        read_series(tmp_path / "other.csv")


def test_without_matplotlib_the_line_that_installs_it(
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        plot.main([str(results), "-o", str(tmp_path / "plot.svg")])
    assert ended.value.code == ResourceError.exit_code
    assert 'pip install "fr-deploy[plot]"' in capsys.readouterr().err
    assert not (tmp_path / "plot.svg").exists()
    with pytest.raises(SystemExit):
        plot.main([str(results), "-o", str(tmp_path / "plot.xls")])
    assert "plot.xls: .xls; allowed: .svg, .png, .pdf" in capsys.readouterr().err


def test_the_picture(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "made" / "plot.svg"
    plot.main([str(results), "-o", str(out), "--device", "cpu", "--batch", "4"])
    assert "lafr-toy (random weights), fp32" in capsys.readouterr().out
    text = out.read_text()
    for said in (
        "AMD EPYC, 2 threads",
        "commit 0123456789",
        "images/s at batch 4: median, p20 to p80",
        ">folded<",
    ):
        assert said in text, said
    again = tmp_path / "again.svg"
    plot.main([str(results), "-o", str(again), "--device", "cpu", "--batch", "4"])
    assert again.read_bytes() == out.read_bytes()
    plot.main([str(results), "-o", str(again.with_suffix(".png"))])
    assert again.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_bars_are_the_rates_and_their_spread(results: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    axes = figures.Figure().subplots()
    series = read_series(results, device="cpu")
    plot._draw_bars(axes, series.at(1), {"eager": "C0", "folded": "C1"})
    assert [bar.get_width() for bar in axes.containers[1]] == [10, 20]
    spread = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert spread == [[5, 20], [10, 40]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eager", "folded"]
