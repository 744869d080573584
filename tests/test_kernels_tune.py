"""Measured launch settings: what may be varied, the gate, the search, the file. The clock is the test's: no GPU."""

import json
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from math import log2
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from fr_kernels import dispatch, launch, measured, tune
from fr_kernels.launch import Launched, Settings, triton_ops
from fr_kernels.measured import BadConfigError, Entry, Origin, tuned
from fr_kernels.phase_shuffle import triton_impl

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
KEY = "phase_shuffle_kernel C=16 16-bit"
ORIGIN = Origin("2026-01-01", "2.13", "3.7.1", "580.65", "abc", False)
Cost = Callable[[Settings], float]


@pytest.fixture
def settings_seen(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What each launch of the phase shuffle was made with."""
    seen: list[Settings] = []

    def spy(*args: Any, settings: Settings, **meta: Any) -> None:
        seen.append(settings)
        launch.launch(*args, settings=settings, **meta)

    monkeypatch.setattr(triton_impl, "launch", spy)
    return seen


def clock(seen: list[Settings], cost: Cost) -> tune.Timer:
    """A timer that runs each call and says what its settings cost, three times, the median between two outliers."""

    def timer(calls: Mapping[str, Callable[[], object]]) -> dict[str, Sequence[float]]:
        times: dict[str, Sequence[float]] = {}
        for name, call in calls.items():
            call()
            times[name] = (9.0, cost(seen[-1]), 0.0)
        return times

    return timer


def shuffle() -> list[launch.Tunable]:
    """Forward in half precision."""
    return tune.tunables("phase_shuffle", small=True)[:1]


def from_small_to_large(settings: Settings) -> float:
    """Least at 4 pixels and 2 warps; a microsecond a step away."""
    away = abs(log2(settings.blocks["PIXELS"] / 4)) + abs(log2(settings.num_warps / 2))
    return (1 + away) * 1e-6


def test_neighbours_differ_in_one_value_and_stay_inside() -> None:
    start = Settings({"ROWS": 16, "COLS": 64}, num_warps=8, num_stages=1)
    space = {"ROWS": (16, 64), "COLS": (16, 64), "num_warps": (4, 16), "num_stages": (1, 3)}
    found = [settings.arguments() for settings in tune.neighbours(start, space)]
    assert found == [
        {"ROWS": 32, "COLS": 64, "num_warps": 8, "num_stages": 1},
        {"ROWS": 16, "COLS": 32, "num_warps": 8, "num_stages": 1},
        {"ROWS": 16, "COLS": 64, "num_warps": 4, "num_stages": 1},
        {"ROWS": 16, "COLS": 64, "num_warps": 16, "num_stages": 1},
        {"ROWS": 16, "COLS": 64, "num_warps": 8, "num_stages": 2},
    ]
    assert tune.neighbours(start, {}) == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of tile rows that are never stored
@pytest.mark.parametrize("op", triton_ops())
def test_every_op_offers_something_for_every_launcher(op: str) -> None:
    assert len({t.name for t in tune.tunables(op)}) == len(tune.tunables(op)) >= 4
    for tunable in tune.tunables(op, small=True):
        if "float32" in tunable.name:
            continue
        workload = tune.Workload(tunable, CPU)
        assert workload.asked, tunable.name
        assert workload.obstacle({}) == "", tunable.name
        for key, (default, space) in workload.asked.items():
            assert space.keys() <= default.arguments().keys(), key
            assert len(tune.neighbours(default, space)) >= 3, key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of tile rows that are never stored
@pytest.mark.parametrize("op", triton_ops())
def test_every_first_step_gives_the_same_result(op: str) -> None:
    """Of the tiles: the interpreter has no warps and no stages, and rounds float32 products by the tile's shape."""
    for tunable in tune.tunables(op, small=True):
        if "float32" in tunable.name:
            continue
        workload = tune.Workload(tunable, CPU)
        for key, (default, space) in workload.asked.items():
            tiles = {name: limits for name, limits in space.items() if name in default.blocks}
            for step in tune.neighbours(default, tiles):
                assert workload.obstacle({key: step}) == "", (tunable.name, key, step)


def test_the_search_climbs_to_the_best(settings_seen: list[Settings]) -> None:
    said: list[str] = []
    timer = clock(settings_seen, from_small_to_large)
    entries = tune.measure(shuffle(), CPU, timer, said.append)
    assert entries == {KEY: Entry({"PIXELS": 4}, 2, 1, median_us=1.0, default_us=5.0)}
    assert len({tuple(s.arguments().items()) for s in settings_seen}) < 6 * 5, "not a grid"
    assert KEY in said[-1]


def test_the_default_stays_where_nothing_is_faster_enough(settings_seen: list[Settings]) -> None:
    def cost(settings: Settings) -> float:
        return 1e-6 if settings == triton_impl.DEFAULT else 0.99e-6

    entries = tune.measure(shuffle(), CPU, clock(settings_seen, cost), lambda _: None)
    assert entries[KEY].settings() == triton_impl.DEFAULT


def test_a_key_belongs_to_the_first_that_asks(settings_seen: list[Settings]) -> None:
    timer = clock(settings_seen, from_small_to_large)
    once = tune.measure(shuffle(), CPU, timer, lambda _: None)
    runs = len(settings_seen)
    assert tune.measure(shuffle() * 2, CPU, timer, lambda _: None) == once
    assert len(settings_seen) == 2 * runs + 1  # the second workload's own run of the defaults


def test_what_does_not_fit_spills_or_errs_is_skipped_with_the_reason(
    settings_seen: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three would be fastest."""

    def broken(kernel: Any, grid: Any, *args: Any, settings: Settings, **meta: Any) -> None:
        settings_seen.append(settings)
        if settings.blocks["PIXELS"] == 64:
            raise OutOfResources(300_000, 232_448, "shared memory")
        launch.launch(kernel, grid, *args, settings=settings, **meta)
        spills = 12 if settings.num_warps == 8 else 0
        for made in launch._observers:
            made[-1] = Launched(kernel.__name__, SimpleNamespace(n_spills=spills))
        if settings.blocks["PIXELS"] == 16:
            args[1][0, 0, 0, 0] += 0.01

    monkeypatch.setattr(triton_impl, "launch", broken)
    said: list[str] = []
    timer = clock(settings_seen, lambda s: 2e-6 if s == triton_impl.DEFAULT else 1e-6)
    entries = tune.measure(shuffle(), CPU, timer, said.append)
    assert entries[KEY].settings() == Settings({"PIXELS": 32}, 2, 1)
    skipped = "\n".join(line for line in said if "skipped" in line)
    assert "'PIXELS': 64" in skipped
    assert "out of resource: shared memory" in skipped
    assert "phase_shuffle_kernel spills registers" in skipped
    assert "against float64, allowed" in skipped


def test_measured_files_travel_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["fr_kernels"]
    file = measured.CONFIGS / measured.gpu_file_name("NVIDIA H200")
    package = ROOT / project["tool"]["setuptools"]["package-dir"]["fr_kernels"]
    assert file.relative_to(package).match(pattern)


@pytest.fixture
def a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch names a GPU, whose file lies in an empty folder; the path of that file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Test-1 80GB")
    monkeypatch.setattr(measured, "CONFIGS", tmp_path)
    monkeypatch.setattr(dispatch, "_said", set())
    measured._measured_on.cache_clear()
    return tmp_path / "nvidia-test-1-80gb.json"


def asked(op: str = "phase_shuffle", key: str = KEY) -> Settings:
    """What a launch on that GPU would get."""
    measured._measured_on.cache_clear()
    return tuned(op, key, triton_impl.DEFAULT, {}, torch.device("cuda"))


def test_the_command_writes_what_the_launchers_read(
    a_gpu: Path, settings_seen: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = clock(settings_seen, from_small_to_large)
    measure, tunables = tune.measure, shuffle()
    monkeypatch.setattr(tune, "tunables", lambda _: tunables)
    monkeypatch.setattr(tune, "measure", lambda t, _, __, say: measure(t, CPU, timer, say))
    assert tune.main(["--op", "phase_shuffle", "-o", str(a_gpu.parent)]) == 0
    assert asked() == Settings({"PIXELS": 4}, 2, 1)
    assert tuned("phase_shuffle", KEY, triton_impl.DEFAULT, {}, CPU) == triton_impl.DEFAULT
    document = json.loads(a_gpu.read_text())
    assert document["gpu"] == "NVIDIA Test-1 80GB"
    made = document["ops"]["phase_shuffle"]
    assert made["torch"] == torch.__version__
    assert {"date", "triton", "driver", "commit", "dirty"} < made.keys()
    assert made["entries"][KEY]["median_us"] == 1.0
    assert made["entries"][KEY]["default_us"] == 5.0


def test_one_op_is_replaced_and_the_others_stay(a_gpu: Path) -> None:
    first = {KEY: Entry({"PIXELS": 8}, 2, 1, 1.0, 2.0)}
    measured.write(a_gpu, "x", "phase_shuffle", ORIGIN, first)
    measured.write(a_gpu, "x", "codebook", ORIGIN, {"old": first[KEY]})
    measured.write(a_gpu, "x", "codebook", ORIGIN, {"new": first[KEY]})
    assert measured.read(a_gpu) == {"phase_shuffle": first, "codebook": {"new": first[KEY]}}


def test_without_a_measurement_the_default_runs_and_it_is_said_once(
    a_gpu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="fr_kernels"):
        for _ in range(3):
            assert asked() == triton_impl.DEFAULT
        measured.write(a_gpu, "x", "phase_shuffle", ORIGIN, {KEY: Entry({"PIXELS": 8}, 2, 1, 1, 2)})
        for _ in range(3):
            assert asked(key="another") == triton_impl.DEFAULT
    first, second = (record.getMessage() for record in caplog.records)
    assert "no launch settings were measured on NVIDIA Test-1 80GB" in first
    assert "python -m fr_kernels.tune" in first
    assert "nothing was measured on NVIDIA Test-1 80GB for 'another'" in second


def altered(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    measured.write(path, "x", "phase_shuffle", ORIGIN, {KEY: Entry({"PIXELS": 8}, 2, 1, 1.0, 2.0)})
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def entry(document: dict[str, Any]) -> dict[str, Any]:
    return document["ops"]["phase_shuffle"]["entries"][KEY]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version 2; this code reads 1"),
        (lambda d: d.pop("version"), "version"),
        (
            lambda d: d["ops"].update(gone=d["ops"]["phase_shuffle"]),
            "no op 'gone'; there are: boost",
        ),
        (lambda d: entry(d).pop("num_warps"), "num_warps"),
        (lambda d: entry(d).update(clusters=2), "clusters"),
        (lambda d: entry(d).update(num_warps=0), "expected whole numbers > 0"),
        (lambda d: d["ops"]["phase_shuffle"].pop("date"), "date"),
        (lambda d: entry(d).update(blocks={"ROWS": 8}), r"has tiles \['ROWS'\]; the kernel takes"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    a_gpu: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    altered(a_gpu, change)
    with pytest.raises(BadConfigError, match=message) as refused:
        asked()
    assert "python -m fr_kernels.tune" in str(refused.value)


def test_no_json(a_gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_gpu.write_text("{")
    with pytest.raises(BadConfigError, match="Delete the file and measure again"):
        asked()
    with pytest.raises(SystemExit) as ended:
        tune.main(["-o", str(a_gpu.parent)])
    assert ended.value.code == 2
    assert "Delete the file" in capsys.readouterr().err


def test_without_a_gpu_the_command_ends_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (([], "on an NVIDIA GPU"), (["--op", "no_op"], "invalid choice")):
        with pytest.raises(SystemExit) as ended:
            tune.main(arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
