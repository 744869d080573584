"""`fr-deploy restore` from the outside, with the real detector and a restorer that inverts faces."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import odd_inputs as odd
from fr_deploy.cli import main
from fr_deploy.faces.align import align_matrix
from fr_deploy.images import read_photo

ROOT = Path(__file__).parents[1]
LOSSLESS = {".png", ".tif", ".bmp"}


class Invert:
    """Stands in for the model: what it touched can be told from what it did not."""

    name = "invert"
    device = "cpu"

    def __call__(self, crops):
        return 255 - crops


@pytest.fixture(autouse=True)
def _restorer(monkeypatch):
    monkeypatch.setattr("fr_deploy.restorer.load_restorer", lambda *_, **__: Invert())


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """256x300, a face of about 75 px."""
    with Image.open(ROOT / "assets" / "demo" / "grace-hopper.jpg") as image:
        return np.asarray(image.convert("RGB").resize((256, 300), Image.Resampling.BOX))


def restore(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["restore", *map(str, arguments)])


def document(done: Result) -> dict:
    return json.loads(done.stdout)


def check_outside_the_face(out: Path, expected: np.ndarray, landmarks: list) -> None:
    """The face is inverted, and what lies outside its crop is the input's own."""
    got = read_photo(out).rgb.astype(int)
    assert got.shape == expected.shape
    matrix = np.vstack([align_matrix(np.array(landmarks, np.float32)), [0, 0, 1]])
    corners = np.linalg.inv(matrix) @ np.array([[0, 511, 0, 511], [0, 0, 511, 511], [1] * 4])
    x0, y0 = np.floor(corners[:2].min(1)).astype(int)
    x1, y1 = np.ceil(corners[:2].max(1)).astype(int) + 1
    away = np.ones(got.shape[:2], bool)
    away[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
    assert away.mean() > 0.2
    difference = np.abs(got - expected)[away]
    if out.suffix in LOSSLESS:
        assert difference.max() <= 2 * ("profile" in out.name), out.name
    else:
        assert difference.mean() < 2.5, out.name
    x, y = np.rint(landmarks[2]).astype(int)
    nose = np.s_[y - 2 : y + 3, x - 2 : x + 3]
    assert np.abs(got[nose].mean((0, 1)) - (255 - expected[nose].mean((0, 1)))).max() < 12, out.name


def make_odd_folder(root: Path, rgb: np.ndarray) -> None:
    """Files of both kinds, and things in a folder that are no files."""
    (root / "sub" / "deep").mkdir(parents=True)
    for name, (data, _) in odd.good_files(rgb).items():
        (root / name).write_bytes(data)
    for name, (data, _) in odd.bad_files(rgb).items():
        (root / "sub" / name).write_bytes(data)
    (root / "sub" / "one pixel.png").write_bytes(odd.encoded(rgb[:1, :1], "PNG"))
    (root / "sub" / "deep" / "no face.png").write_bytes(odd.encoded(odd.gradient(200, 300), "PNG"))
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "notes.txt").write_text("not a photo, and not an input")
    os.mkfifo(root / "pipe.png")


def test_forty_odd_inputs_in_one_call(tmp_path, portrait):
    make_odd_folder(tmp_path / "in", portrait)
    (tmp_path / "hollow").mkdir()
    done = restore(
        tmp_path / "in", tmp_path / "hollow", tmp_path / "absent.jpg", "-o", tmp_path / "out",
        "--json", "--report", tmp_path / "report.html",
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert "Traceback" not in done.output
    results = {Path(f["name"]).name: f for f in document(done)["files"]}
    assert len(results) >= 40
    expected_bad = {name: reason for name, (_, reason) in odd.bad_files(portrait).items()} | {
        "dangling.jpg": "unreadable", "pipe.png": "unreadable", "hollow": "empty_folder",
        "absent.jpg": "not_found",
    }  # fmt: skip
    reasons = {n: f["reason"] for n, f in results.items() if f["status"] == "failed"}
    assert reasons == expected_bad
    for name, reason in expected_bad.items():
        assert f"{name}: {reason}: " in done.stderr
    faceless = {n for n, f in results.items() if f["status"] == "no_face"}
    assert faceless == {"one pixel.png", "no face.png"}
    good = odd.good_files(portrait)
    assert {n for n, f in results.items() if f["status"] == "restored"} == set(good)
    for name, (_, expected) in good.items():
        assert len(results[name]["faces"]) == 1, name
        out = Path(results[name]["outputs"][0])
        check_outside_the_face(out, expected, results[name]["faces"][0]["landmarks"])
    written = {
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert written == {name.replace(".gif", ".png") for name in good}
    assert read_photo(tmp_path / "out" / "alpha.png").alpha is not None
    assert (tmp_path / "report.html").read_text().count("<article") == len(good)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hollow", "in", "out", "report.html"]


def test_warnings_reach_the_user(tmp_path, portrait):
    name = "16 bit.png"
    source = odd.write(tmp_path, name, odd.good_files(portrait)[name][0])
    done = restore(source, "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "reduced_to_8_bit" in done.stdout


def test_plain_lines_say_model_device_and_outcome(tmp_path, portrait):
    source = odd.write(tmp_path, "a.png", odd.encoded(portrait, "PNG"))
    done = restore(source, "-o", tmp_path / "out", "--blend", "0.5")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("model invert on cpu; faces all, ")
    assert "blend 0.5" in lines[0]
    assert f"[1/1] {source}: 1 face, " in lines[1]
    assert lines[2].startswith("1 restored, 1 faces in ")


def test_clashes_are_found_before_any_work(tmp_path, portrait, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("fr_deploy.restorer.load_restorer", never)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        odd.write(tmp_path / folder, "a.png", odd.encoded(portrait, "PNG"))
    done = restore(tmp_path / "one", tmp_path / "two", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "written twice" in done.stderr
    assert not (tmp_path / "out").exists()
    assert restore(tmp_path / "one", "-o", tmp_path / "one").exit_code == 2
    odd.write(tmp_path, "file", b"")
    assert restore(tmp_path / "one", "-o", tmp_path / "file" / "below").exit_code == 2


@pytest.mark.parametrize("name", ["absent.jpg", "*.nothing", "empty", "text.jpg"])
def test_nothing_usable_is_4(tmp_path, name, monkeypatch):
    (tmp_path / "empty").mkdir()
    odd.write(tmp_path, "text.jpg", b"text")
    monkeypatch.chdir(tmp_path)
    done = restore(name, "-o", "out", "--json")
    assert done.exit_code == 4
    assert "no usable photo" in done.stderr
    assert document(done)["counts"] == {"failed": 1}


@pytest.mark.parametrize(
    "arguments",
    [["a.jpg"], ["-o", "out"], ["a.jpg", "-o", "x", "--blend", "2"],
     ["a.jpg", "-o", "x", "--rotations", "45"], ["a.jpg", "-o", "x", "--faces", "some"]],
)  # fmt: skip
def test_wrong_usage_is_2(arguments):
    done = restore(*arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_no_face_is_an_outcome_and_copied_only_when_asked(tmp_path):
    source = odd.write(tmp_path, "a.png", odd.encoded(odd.gradient(200, 300), "PNG"))
    done = restore(source, "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "no face found" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []
    assert restore(source, "-o", tmp_path / "out", "--copy-faceless").exit_code == 0
    np.testing.assert_array_equal(
        read_photo(tmp_path / "out" / "a.png").rgb, odd.gradient(200, 300)
    )


def test_existing_results_are_replaced_or_skipped(tmp_path, portrait):
    source = odd.write(tmp_path, "a.png", odd.encoded(portrait, "PNG"))
    odd.write(tmp_path, "b.png", b"old")
    done = restore(source, "-o", tmp_path / "b.png", "--skip-existing", "--json")
    assert [f["status"] for f in document(done)["files"]] == ["skipped"]
    assert (tmp_path / "b.png").read_bytes() == b"old"
    assert restore(source, "-o", tmp_path / "b.png").exit_code == 0
    assert read_photo(tmp_path / "b.png").rgb.shape == portrait.shape


def test_only_faces_writes_the_crops(tmp_path, portrait):
    source = odd.write(tmp_path, "a.jpg", odd.encoded(np.hstack([portrait, portrait]), "PNG"))
    done = restore(source, "-o", tmp_path / "out", "--only-faces", "--ext", "png")
    assert done.exit_code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-face0.png", "a-face1.png"]
    assert read_photo(tmp_path / "out" / "a-face0.png").rgb.shape == (512, 512, 3)


def test_aligned_upscale_ext_and_suffix(tmp_path):
    crop = odd.gradient(100, 80)
    source = odd.write(tmp_path, "a.bmp", odd.encoded(crop, "BMP"))
    done = restore(
        "-i", source, "-o", tmp_path / "out", "--aligned", "--upscale", "2", "--ext", "webp",
        "--suffix", "_new",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "aligned face" in done.stdout
    assert read_photo(tmp_path / "out" / "a_new.webp").rgb.shape == (200, 160, 3)


def test_a_bug_in_one_photo_does_not_stop_the_others(tmp_path, portrait, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        odd.write(tmp_path, name, odd.encoded(portrait, "PNG"))

    class Second(Invert):
        calls = 0

        def __call__(self, crops):
            Second.calls += 1
            if Second.calls == 2:
                raise ZeroDivisionError("in the model")
            return 255 - crops

    monkeypatch.setattr("fr_deploy.restorer.load_restorer", lambda *_, **__: Second())
    done = restore(tmp_path, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 1
    assert [f["status"] for f in document(done)["files"]] == ["restored", "failed", "restored"]
    assert "unexpected: ZeroDivisionError: in the model" in done.stderr
    assert "Traceback" not in done.output


def test_a_full_disk_stops_the_run_with_6(tmp_path, portrait, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    source = odd.write(tmp_path, "a.png", odd.encoded(portrait, "PNG"))
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "fsync", full)
    done = restore(source, "-o", tmp_path / "out")
    assert done.exit_code == 6
    assert "disk is full" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
