"""The embedded model on a hundred photos, killed five times: every photo has its outcome, and a face restored in it."""

import io
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from batch_cli import Group, batch, begun_lines, check_standing, ledger_lines, wait_until

DEMO = Path(__file__).parents[1] / "assets" / "demo"
PHOTOS, KILLS, SIDE = 100, 5, 480
TORCH_SECONDS = 300


def hundred_photos(folder: Path) -> Path:
    """The demo photos at 480 px, turned, mirrored, and each of another brightness."""
    folder.mkdir()
    sources = [Image.open(path).convert("RGB") for path in sorted(DEMO.glob("*.[jp][pn]g"))]
    for image in sources:
        image.thumbnail((SIDE, SIDE))
    for index in range(PHOTOS):
        image = sources[index % len(sources)]
        image = ImageOps.mirror(image) if index % 2 else image
        image = image.rotate(index % 7 - 3, Image.Resampling.BICUBIC)
        lit = np.clip(np.asarray(image) * (0.7 + 0.006 * index), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(lit).save(out, "JPEG", quality=90)
        (folder / f"photo {index:03}.jpg").write_bytes(out.getvalue())
    return folder


def one_start(out: Path, chance: random.Random, arguments: Sequence[object]) -> int:
    """Start, wait for six records of this start, wait a little, kill; how many photos were begun."""
    before = ledger_lines(out)
    with Group(*arguments) as run:
        wait_until(
            lambda: run.process.poll() is not None or ledger_lines(out) > before + 5,
            "some records of this start",
            TORCH_SECONDS,
        )
        time.sleep(chance.uniform(0, 0.5))
        run.kill()
    return begun_lines(out)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_photos_with_the_embedded_model_killed_five_times(
    tmp_path: Path, record_property: Any
) -> None:
    source, out = hundred_photos(tmp_path / "in"), tmp_path / "out"
    chance, begun = random.Random(5), 0
    arguments = (source, out, "--device", "cpu", "--batch", 4, "--progress", "none")
    for _ in range(KILLS):
        begun += one_start(out, chance, arguments)
        check_standing(out)
    assert ledger_lines(out) < PHOTOS, "nothing was left to be gone on with"
    done = batch("resume", out, "--progress", "none", timeout=1200)
    assert done.returncode == 0, done.stderr
    begun += begun_lines(out)
    found = check_standing(out)
    assert sorted(record.index for record in found) == list(range(PHOTOS))
    restored = [record for record in found if record.status == "restored"]
    assert {record.status for record in found} <= {"restored", "no_face"}
    assert len(restored) >= 0.9 * PHOTOS
    assert all(record.faces and record.outputs for record in restored)
    assert batch("verify", out).returncode == 0
    record_property(
        "figure",
        f"lafr-mini, {PHOTOS} photos, {KILLS} kills: {len(restored)} restored, {begun - PHOTOS} begun again",
    )
