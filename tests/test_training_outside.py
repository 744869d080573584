import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import fr_deploy.faces
from fr_deploy.errors import ModelError
from fr_training import outside

Image = NDArray[np.uint8]


@dataclass
class Box:
    box: NDArray[np.float32]


class TwoBoxes:
    """Finds the two bright squares that `photo` draws, the small one first."""

    def detect(self, rgb: Image, **_: int) -> list[Box]:
        count, _, stats, _ = cv2.connectedComponentsWithStats((rgb[..., 0] > 200).astype(np.uint8))
        boxes = sorted((s[:4] for s in stats[1:count]), key=lambda s: s[2])
        return [Box(np.array([x, y, x + w, y + h], np.float32)) for x, y, w, h in boxes]


def cut(rgb: Image, faces: list[Box], size: int = 512) -> tuple[Image, list[None]]:
    x0, y0, x1, y1 = faces[0].box.astype(int)
    return cv2.resize(rgb[y0:y1, x0:x1], (size, size))[None], [None]


def photo(red: int) -> Image:
    image = np.zeros((90, 120, 3), np.uint8)
    image[5:15, 90:100] = (255, 9, 9)
    image[40:80, 20:60] = (red, 30, 60)
    return image


@pytest.fixture
def one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(fr_deploy.faces, "FaceDetector", TwoBoxes, raising=False)
    monkeypatch.setattr(fr_deploy.faces, "align_faces", cut, raising=False)

    def pack(version: str, image: Image) -> None:
        path = tmp_path / "wheels" / f"some_people-{version}-py3-none-any.whl"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("a.png", cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        pin = (f"some-people=={version}", hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setattr(outside, "PICTURES", {"a": (pin, "a.png")})

    return pack


def test_largest_face_is_cut_once_and_again_when_the_pins_change(one_picture) -> None:
    one_picture("1", photo(210))
    faces, names = outside.outside_faces()
    assert faces.shape == (1, 512, 512, 3)
    assert names == ["a"]
    assert (faces == (210, 30, 60)).all()
    one_picture("2", photo(240))
    assert (outside.outside_faces()[0] == (240, 30, 60)).all()
    for wheel in outside.cache_dir().glob("wheels/*"):
        wheel.unlink()
    assert (outside.outside_faces()[0] == (240, 30, 60)).all()  # read back without the wheel


def test_picture_without_a_face_is_an_error(one_picture) -> None:
    one_picture("1", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(ModelError, match="a: no face found in 30 x 20 px"):
        outside.outside_faces()


def test_the_table_names_22_pictures_of_three_pinned_wheels() -> None:
    pins = {pin for pin, _ in outside.PICTURES.values()}
    assert len(outside.PICTURES) == 22
    assert len({member for _, member in outside.PICTURES.values()}) == 22
    assert len(pins) == 3
    assert all("==" in name and len(digest) == 64 for name, digest in pins)
