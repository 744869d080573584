"""fr-deploy bench serve-batch: the plain loop writes what serve-batch writes, or nothing is timed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from fr_bench import serve_batch as bench_module
from fr_bench.cli import bench
from fr_bench.naive_loop import naive_loop
from fr_bench.photos import HEIGHT, WIDTH, write_crops, write_photos
from fr_bench.serve_batch import Job, ServeBatchRow, bench_serve_batch, require_same
from fr_deploy.batch.device import FakeDevice
from fr_deploy.batch.fetch import Fetcher
from fr_deploy.batch.finish import FinishStage
from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Pace, Plan
from fr_deploy.batch.prepare import PrepareStage
from fr_deploy.batch.work import Faces, Finish
from fr_deploy.errors import FrDeployError, ModelError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "photos"
    write_photos(folder, 1)
    return folder


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A stage sets these for its process; two threads on a core that is shared wait for each other."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_pixels_are_those_of_the_stages(photos: Path, tmp_path: Path) -> None:
    assert naive_loop(photos, tmp_path / "naive", FakeDevice(0)) == 1
    prepare, device = PrepareStage(Plan(), Fetcher()), FakeDevice(0)
    finish = FinishStage(Plan(), Pace(tmp_path, tmp_path / "parts"))
    prepare.setup()
    finish.setup()
    for index, path in enumerate(sorted(photos.iterdir())):
        prepared = prepare(Item(index, path.name, str(path), f"{path.stem}.png"))
        assert len(prepared.faces) == 1
        done = finish(Finish(prepared, device(Faces(prepared.crops))))
        naive = pixels(tmp_path / "naive" / f"{path.stem}.png")
        np.testing.assert_array_equal(pixels(Path(done.parts[0])), naive)
        before = pixels(path)
        assert before.shape == naive.shape == (HEIGHT, WIDTH, 3)
        changed = (before != naive).any(-1).mean()
        assert 0.05 < changed < 0.5


def test_crops_are_faces_of_512_pixels(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", 2)
    one, other = (pixels(path) for path in sorted((tmp_path / "crops").iterdir()))
    assert one.shape == (512, 512, 3)
    assert (one != other).any()


def picture(folder: Path, name: str, value: int) -> None:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 3), (value, 0, 0)).save(folder / name)


def test_results_that_differ_stop_the_run(tmp_path: Path) -> None:
    ours, naive = tmp_path / "ours", tmp_path / "naive"
    for name in ("a.png", "b.png"):
        picture(ours, name, 1)
        picture(naive, name, 1)
    require_same(ours, naive, 2)
    with pytest.raises(ModelError, match="of 3; nothing was timed"):
        require_same(ours, naive, 3)
    picture(ours, "b.png", 2)
    with pytest.raises(ModelError, match=r"b\.png: .* differ; nothing was timed"):
        require_same(ours, naive, 2)


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(FrDeployError, match="fake:BASEms"):
        bench_module.naive_loop(tmp_path, tmp_path / "out", "fake:nonsense")


def test_the_command_times_both_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With commands that only write: their order, the comparison before, rows and document."""
    asked: list[str] = []

    def write(source: Path, out: Path, device: str, *more: str) -> dict[str, Any]:
        assert not out.exists()
        assert device == "fake:1ms"
        asked.append(" ".join((source.name, *more)))
        for path in source.iterdir():
            picture(out, f"{path.stem}.png", 9)
        return {"busy": {"restore": len(more) / 10}}

    monkeypatch.setattr(bench_module, "serve_batch", write)
    monkeypatch.setattr(bench_module, "naive_loop", write)
    arguments = ["serve-batch", "--photos", "2", "--crops", "3", "--device", "fake:1ms"]
    arguments += ["--finishers", "3", "-o", str(tmp_path)]
    done = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "pictures identical" in done.output
    assert asked[2:8].count("photos") == 3
    assert asked.count("photos") == asked.count("photos --ext png --finishers 3") == 4
    assert asked[8:] == [
        *["photos --ext jpg --batch 16 --finishers 3"] * 3,
        *["crops --aligned --ext jpg --batch 16 --finishers 3"] * 3,
    ]
    document = json.loads(done.stdout.splitlines()[-1])
    techniques = ["serve-batch", "naive loop", "serve-batch", "serve-batch"]
    assert [row["technique"] for row in document["rows"]] == techniques
    assert [row["photos"] for row in document["rows"]] == [2, 2, 2, 3]
    assert [row["device_busy"] for row in document["rows"]] == [0.4, None, 0.6, 0.7]
    assert document["ratio"]["p20"] <= document["ratio"]["p50"]
    header = (tmp_path / "serve-batch.csv").read_text().splitlines()[0].split(",")
    assert set(header) == set(ServeBatchRow.__dataclass_fields__)


@pytest.mark.slow
def test_one_run_measures_the_loop_and_the_device(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """That it runs, and the figures; not how fast, which machines that others share cannot hold to.

    With 8 photos starting counts a lot: benchmarks/results has the run with 24.
    """
    done = bench_serve_batch(Job(tmp_path, "fake:6ms+7ms", photos=8, crops=160, repeats=1))
    ours, _, photos, crops = done.rows
    record_property("figure", f"naive loop over serve-batch, 8 photos: {done.ratio}")
    record_property("figure", f"device busy with 512 px JPEG: {crops.device_busy}")
    for row in (ours, photos, crops):
        assert row.device_busy is not None
        assert 0 < row.device_busy <= 1
