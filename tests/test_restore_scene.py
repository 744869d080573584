"""`fr-deploy restore` with the embedded model on photos whose faces are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from fr_deploy.bundle import bundle_folder, load_bundle
from fr_deploy.cli import main
from fr_deploy.faces import FaceDetector
from fr_deploy.pipeline import RestoreOptions, restore_photo
from fr_deploy.restorer import load_restorer
from scenes import Placed, compose_scene, face_crop, face_weight, texture

# The face's own height is about 0.7 of the side of its crop: 40, 80, 140, 250 and 400 px here.
SIDES = (57, 114, 200, 357, 571)


@pytest.fixture(scope="module")
def scene() -> NDArray[np.uint8]:
    crops = [
        face_crop(n)
        for n in ("p005-portrait", "p007-selfie", "p009-portrait", "p005-selfie", "p007-portrait")
    ]
    places = [(150, 150), (330, 160), (560, 180), (250, 500), (850, 460)]
    angles = [0.0, 25.0, -25.0, 0.0, 0.0]
    placed = [Placed(c, s, at, a) for c, s, at, a in zip(crops, SIDES, places, angles, strict=True)]
    return compose_scene(texture(800, 1200), placed)[0]


def restore(
    photo: NDArray[np.uint8], folder: Path, *options: str
) -> tuple[Result, NDArray[np.uint8]]:
    Image.fromarray(photo).save(folder / "photo.png")
    command = ["restore", str(folder / "photo.png"), "-o", str(folder / "out"), "--json", *options]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    out = folder / "out" / "photo.png"
    return result, np.asarray(Image.open(out)) if out.exists() else photo[:0]


def edge_gradient(photo: NDArray[np.uint8], mask: NDArray[np.float64]) -> float:
    """Mean step between neighbouring pixels where the mask begins: weights of 0 to 5 %."""
    gray = photo.astype(np.float64).mean(2)
    across = np.hypot(np.diff(gray, axis=1)[:-1], np.diff(gray, axis=0)[:, :-1])
    rim = (mask > 0) & (mask < 0.05)
    return float(across[rim[:-1, :-1]].mean())


def test_five_faces_of_five_sizes(scene: NDArray[np.uint8], tmp_path: Path) -> None:
    result, out = restore(scene, tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)["files"][0]
    assert report["status"] == "restored"
    assert len(report["faces"]) == 5
    done = restore_photo(scene, FaceDetector(), load_restorer("lafr-mini"))
    assert np.array_equal(out, done.rgb)
    drawn = [face_weight(scene, matrix) for matrix in done.matrices]
    outside = np.max(drawn, axis=0) == 0
    assert outside.mean() > 0.3
    assert np.array_equal(out[outside], scene[outside])
    ratios = [edge_gradient(out, mask) / edge_gradient(scene, mask) for mask in drawn]
    assert max(ratios) <= 1.1, ratios
    inside = [np.abs(out.astype(int) - scene)[mask > 0.5].mean() for mask in drawn]
    assert min(inside) > 0.5, "a face was not restored"


def test_an_upside_down_photo_needs_rotations(scene: NDArray[np.uint8], tmp_path: Path) -> None:
    turned = np.ascontiguousarray(scene[::-1, ::-1])
    result, out = restore(turned, tmp_path, "--rotations", "0,90,180,270")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["files"][0]["faces"]) == 5
    upright = restore_photo(scene, FaceDetector(), load_restorer("lafr-mini")).rgb
    difference = np.abs(out[::-1, ::-1].astype(int) - upright)
    assert difference.mean() < 1.0


def test_blend_is_between_the_two(scene: NDArray[np.uint8]) -> None:
    detector, restorer = FaceDetector(), load_restorer("lafr-mini")
    done = restore_photo(scene, detector, restorer)
    half = restore_photo(scene, detector, restorer, RestoreOptions(blend=0.5)).rgb
    full = done.rgb.astype(int)
    # Where two masks meet the second face is blended over the first, and a clipped value has lost its sum.
    once = np.sum([face_weight(scene, m) > 0 for m in done.matrices], axis=0) <= 1
    plain = once[..., None] & (full > 0) & (full < 255)
    assert plain.mean() > 0.8
    assert np.abs(half - (full + scene) / 2)[plain].max() <= 1.5  # two roundings


def test_the_embedded_bundle_is_small_and_safetensors_only() -> None:
    folder = bundle_folder("lafr-mini")
    weights = list(folder.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 15 * 2**20
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".md",
    }
    assert "esearch use" in (folder / "README.md").read_text()
    model = load_bundle("lafr-mini")
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert model.preset.size == 512
