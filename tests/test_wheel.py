"""The wheel, built from the tree and installed away from it."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "fr_deploy",
    "kernels/fr_kernels",
    "export/fr_export",
    "training/fr_training",
    "benchmarks/fr_bench",
)
pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _checked_in(folder: str) -> set[str]:
    listed = _run("git", "ls-files", "-co", "--exclude-standard", folder, cwd=ROOT).split()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its `build` folder in the tree and reuses it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in _checked_in("."):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    _run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        target,
        source,
        cwd=target,
    )
    (built,) = target.glob("fr_deploy-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and the dependencies of this one behind it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    _run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder.parent)
    (site,) = folder.glob("lib/python*/site-packages")
    # A plain path line is appended to sys.path, and the .pth files in it, the editable install's, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in PACKAGES:
        room = folder.rpartition("/")[0]
        wanted = {name.removeprefix(room + "/") if room else name for name in _checked_in(folder)}
        assert wanted - inside == set()
    sources = {name.replace("csrc/", "fr_kernels/csrc/", 1) for name in _checked_in("csrc")}
    assert {name for name in sources if name.endswith(".cu")} - inside == set()
    tops = {name.partition("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        folder.rpartition("/")[2] for folder in PACKAGES
    }


def test_the_metadata_names_licence_and_readme(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    text = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert (ROOT / "README.md").read_text() in text
    licence = metadata.replace("METADATA", "licenses/LICENSE")
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_it_runs_outside_the_checkout(python: Path, tmp_path: Path) -> None:
    version = _run(python.with_name("fr-deploy"), "--version", cwd=tmp_path)
    assert version.startswith("fr-deploy 0.")
    code = (
        "import fr_bench, fr_deploy, fr_export, fr_kernels, fr_training, json\n"
        "from fr_kernels.sources import cuda_source, cuda_source_names\n"
        "modules = fr_bench, fr_deploy, fr_export, fr_kernels, fr_training\n"
        "print(json.dumps([[m.__file__ for m in modules], "
        "{n: cuda_source(n) for n in cuda_source_names()}]))"
    )
    files, sources = json.loads(_run(python, "-c", code, cwd=tmp_path))
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files)
    assert sources == {path.stem: path.read_text() for path in (ROOT / "csrc").glob("*.cu")}


@pytest.mark.skipif(
    not (ROOT / "fr_deploy/weights/lafr-mini/model_index.json").exists(),
    reason="the checkout has no embedded model",
)
def test_it_restores_a_photo_outside_the_checkout(python: Path, tmp_path: Path) -> None:
    photo = ROOT / "assets" / "demo" / "selfie.jpg"
    (tmp_path / photo.name).write_bytes(photo.read_bytes())
    program = python.with_name("fr-deploy")
    out = _run(program, "restore", photo.name, "-o", "restored", "--json", cwd=tmp_path)
    (result,) = json.loads(out)["files"]
    assert result["status"] == "restored"
    assert len(result["faces"]) == 1
    (restored,) = (tmp_path / "restored").iterdir()
    assert restored.read_bytes() != photo.read_bytes()
