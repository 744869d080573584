"""The first stage: an item's bytes become a photo, its faces and their crops, or a reason."""

import hashlib
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import odd_inputs as odd
from fr_deploy.batch.item import Item
from fr_deploy.batch.plan import Plan
from fr_deploy.batch.prepare import Laps, PrepareStage
from fr_deploy.batch.work import Prepared
from fr_deploy.errors import ImageError
from fr_deploy.faces import FaceDetector
from fr_deploy.images import read_photo
from fr_deploy.pipeline import find_faces
from fr_deploy.settings import Limits, RestoreOptions

DEMO = Path(__file__).parents[1] / "assets" / "demo"
ALIGNED = Plan(RestoreOptions(aligned=True))


@dataclass
class Held:
    """A fetcher of bytes in memory."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def fetch(self, item: Item) -> tuple[bytes, str]:
        data = self.files[item.name]
        return data, hashlib.sha256(data).hexdigest()


def prepared(data: bytes, plan: Plan = ALIGNED) -> Prepared:
    stage = PrepareStage(plan, Held({"a.jpg": data}))
    stage.setup()
    return stage(Item(0, "a.jpg", "a.jpg", "a.jpg"))


@pytest.mark.parametrize("name", ["grace-hopper.jpg", "selfie.jpg"])
def test_is_what_restore_reads_and_finds(name: str) -> None:
    """The detector of `restore` uses all cores, that of a run one: they find the same to the bit."""
    data = (DEMO / name).read_bytes()
    made = prepared(data, Plan())
    photo = read_photo(DEMO / name)
    found = find_faces(photo.rgb, FaceDetector(), RestoreOptions())
    np.testing.assert_array_equal(made.photo.rgb, photo.rgb)
    assert (made.photo.exif, made.photo.format) == (photo.exif, "JPEG")
    assert made.in_sha256 == hashlib.sha256(data).hexdigest()
    assert len(made.faces) >= 1
    for one, other in zip(made.faces, found.faces, strict=True):
        np.testing.assert_array_equal(one.landmarks, other.landmarks)
        np.testing.assert_array_equal(one.box, other.box)
        assert one.score == other.score
    np.testing.assert_array_equal(made.crops, found.crops)
    np.testing.assert_array_equal(np.stack(made.matrices), np.stack(found.matrices))
    assert set(made.ms) == {"fetch", "decode", "detect"}
    assert all(value >= 0 for value in made.ms.values())


def test_no_face_is_no_crop() -> None:
    made = prepared(odd.encoded(odd.gradient(), "PNG"), Plan())
    assert made.faces == []
    assert made.crops.shape == (0, 512, 512, 3)


def test_confidence_is_the_plans() -> None:
    data = (DEMO / "grace-hopper.jpg").read_bytes()
    found = prepared(data, Plan()).faces[0].score
    assert found < 0.99999
    assert prepared(data, Plan(confidence=0.99999)).faces == []


@pytest.mark.parametrize("shape", [(512, 512), (40, 60), (300, 200)], ids=str)
def test_an_aligned_photo_is_one_square(shape: tuple[int, int]) -> None:
    made = prepared(odd.encoded(odd.gradient(*shape), "PNG"))
    assert made.crops.shape == (1, 512, 512, 3)
    assert made.faces == []
    assert made.matrices == []
    if shape == (512, 512):
        np.testing.assert_array_equal(made.crops[0], made.photo.rgb)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not_an_image"),
        (b"I am no photo", "not_an_image"),
        (odd.bomb_header(), "too_large"),
        (odd.encoded(odd.gradient(), "JPEG")[:-50], "truncated"),
    ],
    ids=["empty", "text", "bomb", "cut"],
)
def test_what_is_no_photo_has_its_reason(data: bytes, expected: str) -> None:
    with pytest.raises(ImageError) as caught:
        prepared(data)
    assert caught.value.reason == expected


def test_limits_are_the_plans() -> None:
    data = odd.encoded(odd.gradient(), "PNG")
    for limits in (Limits(max_bytes=len(data) - 1), Limits(max_pixels=2399)):
        with pytest.raises(ImageError) as caught:
            prepared(data, Plan(RestoreOptions(aligned=True), limits))
        assert caught.value.reason == "too_large"


def test_too_large_an_enlargement_is_refused_before_a_face_is_looked_for() -> None:
    plan = Plan(RestoreOptions(upscale=4.0))
    big = np.zeros((4000, 4000, 3), np.uint8)
    with pytest.raises(ImageError, match="--upscale") as caught:
        prepared(odd.encoded(big, "PNG", compress_level=1), plan)
    assert caught.value.reason == "too_large"


def test_travels_to_a_process() -> None:
    copy = pickle.loads(pickle.dumps(PrepareStage(ALIGNED, Held({"a.jpg": b"x"}))))
    assert copy.plan == ALIGNED
    assert copy.fetcher.fetch(Item(0, "a.jpg", "a.jpg", "a.jpg"))[0] == b"x"


def loaded_by(code: str) -> set[str]:
    script = (
        f"import sys\n{code}\nprint(*sorted({{'torch', 'cv2', 'onnxruntime'}} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_process_of_a_run_imports_nothing_heavy() -> None:
    modules = ("prepare", "finish", "device", "guard", "work", "plan")
    assert loaded_by(";".join(f"import fr_deploy.batch.{name}" for name in modules)) == set()


def test_aligned_photos_need_no_torch() -> None:
    code = (
        "import io, numpy as np\n"
        "from PIL import Image\n"
        "from fr_deploy.batch.item import Item\n"
        "from fr_deploy.batch.plan import Plan\n"
        "from fr_deploy.batch.prepare import PrepareStage\n"
        "from fr_deploy.settings import RestoreOptions\n"
        "class Held:\n"
        "    def fetch(self, item):\n"
        "        file = io.BytesIO()\n"
        "        Image.new('RGB', (30, 20)).save(file, 'JPEG')\n"
        "        return file.getvalue(), ''\n"
        "stage = PrepareStage(Plan(RestoreOptions(aligned=True)), Held())\n"
        "stage.setup()\n"
        "assert stage(Item(0, 'a', 'a', 'a.jpg')).crops.shape == (1, 512, 512, 3)\n"
    )
    assert loaded_by(code) == {"cv2"}


def test_laps_of_one_name_are_added_up() -> None:
    laps = Laps({"fetch": 2.0})
    laps.lap("write")
    first = laps.ms["write"]
    laps.lap("write")
    assert laps.ms["write"] >= first
    assert laps.ms["fetch"] == 2.0
