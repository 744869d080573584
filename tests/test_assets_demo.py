"""The demo photos: few, documented, and each with one face to restore."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fr_deploy.faces import FaceDetector
from fr_deploy.images import read_photo

ROOT = Path(__file__).parents[1]
DEMO = sorted((ROOT / "assets" / "demo").iterdir())


def test_small_and_each_named_with_its_licence():
    text = (ROOT / "assets" / "README.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert rows == {path.name for path in DEMO}
    assert len(DEMO) >= 5
    assert sum(path.stat().st_size for path in DEMO) < 2_500_000


@pytest.mark.parametrize("path", DEMO, ids=lambda path: path.name)
def test_one_face_each(path):
    photo = read_photo(path)
    assert photo.warnings == []
    assert len(FaceDetector(threads=1).detect(photo.rgb)) == 1


@pytest.mark.slow
def test_the_demo_restores_every_photo(tmp_path):
    command = [sys.executable, "-m", "fr_deploy", "restore", "assets/demo", "-o", tmp_path / "out"]
    command += ["--report", tmp_path / "report.html", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)["files"]
    assert [(Path(f["name"]).name, f["status"], len(f["faces"])) for f in files] == [
        (path.name, "restored", 1) for path in DEMO
    ]
    assert (tmp_path / "report.html").read_text().count("<article") == len(DEMO)


@pytest.mark.slow
def test_a_24_megapixel_photo_takes_less_than_1500_mb(tmp_path):
    """Measured with a stand-in for the model: 0.96 GB; torch and its friends alone are 0.54 GB."""
    noise = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3)).astype(np.uint8)
    with Image.open(ROOT / "assets" / "demo" / "grace-hopper.jpg") as face:
        noise[1000:2200, 2500:3524] = np.asarray(face.convert("RGB").resize((1024, 1200)))
    Image.fromarray(noise).save(tmp_path / "large.jpg", quality=85)
    script = (
        "import pathlib, sys\nfrom fr_deploy.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        # `ru_maxrss` would start with that of the process the tests run in, which can be larger.
        "finally:\n    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    print(status.partition('VmHWM:')[2].split()[0], file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "restore", tmp_path / "large.jpg", "--json"]
    command += ["-o", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["files"][0]["faces"]) == 1
    assert int(done.stderr.split()[-1]) < 1_500_000
