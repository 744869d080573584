import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fr_deploy.errors import UsageError
from fr_training.degrade import degrade
from fr_training.evaluate import METHODS, Judge, degraded, evaluate
from fr_training.metrics import Interval, psnr, ssim
from fr_training.verdict import (
    GOALS,
    METRICS,
    MUSTS,
    Row,
    eval_markdown,
    eval_table,
    gains_over,
    judge,
    shortfalls,
)

Images = NDArray[np.uint8]


class Pyramid:
    """A cheap stand-in for VGG16: the picture and its 4 x 4 means, so distances can be computed by hand."""

    def features(self, image: Tensor) -> list[Tensor]:
        return [image, F.avg_pool2d(image, 4)]

    def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack(
            [(p - q).square().mean((1, 2, 3)) for p, q in zip(a, b, strict=True)]
        ).sum(0)


def corner_angle(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(cosine.clip(-1, 1))).astype(np.float32)


def networks() -> Judge:
    def embed(images: Images) -> NDArray[np.float32]:
        return np.stack([cv2.resize(i, (8, 8)).ravel().astype(np.float32) for i in images])

    return Judge(Pyramid(), embed, corner_angle, "stub")


@pytest.fixture(scope="module")
def faces() -> Images:
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 216, (4, 16, 16, 3)).astype(np.uint8)
    return np.stack([cv2.resize(c, (128, 128), interpolation=cv2.INTER_CUBIC) for c in coarse])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FR_DEPLOY_CACHE", str(tmp_path))


def cheat(clean: Images, share: float):
    """A 'model' that moves its input towards the clean faces by `share`; it must be given them in order."""

    def restore(images: Images) -> Images:
        mix = images + share * (clean.astype(np.float64) - images)
        return mix.round().clip(0, 255).astype(np.uint8)

    return restore


def test_every_number_is_the_metric_of_its_face(faces: Images) -> None:
    rows = evaluate(cheat(faces, 0.5), {"set": faces}, ("vqfr-v1", "hq"), networks=networks())
    keys = [(row.level, row.method) for row in rows]
    assert keys == [("vqfr-v1", m) for m in (*METHODS, "model")] + [("hq", "model")]
    inputs = degraded(faces, "vqfr-v1")
    for method, row in zip(METHODS, rows, strict=False):
        made = np.stack([METHODS[method](face) for face in inputs])
        assert row.scores["psnr"] == [psnr(m, f) for m, f in zip(made, faces, strict=True)]
        assert row.scores["ssim"] == [ssim(m, f) for m, f in zip(made, faces, strict=True)]
        a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (made, faces))
        by_hand = Pyramid().distance(Pyramid().features(a), Pyramid().features(b))
        assert row.scores["lpips_hed"] == pytest.approx(by_hand.tolist(), rel=1e-5)
        angles = corner_angle(networks().embed(made), networks().embed(faces))
        assert row.scores["deg_dlib"] == pytest.approx(angles.tolist(), abs=0.02)


def test_degradation_depends_on_index_and_level_only(faces: Images) -> None:
    both = degraded(faces[[0, 0]], "mild")
    assert not np.array_equal(both[0], both[1])
    assert np.array_equal(both, degraded(faces[[0, 0, 1]], "mild")[:2])
    assert not np.array_equal(both[0], degrade(faces[0], "mild", 0))
    assert degraded(faces, "hq") is faces


def test_gains_are_paired_and_signed(faces: Images) -> None:
    rows = evaluate(cheat(faces, 0.5), {"set": faces}, ("vqfr-v2",), networks=networks())
    before, model = rows[0], rows[-1]
    assert before.gains == {}
    # halving the error is 6.02 dB on every face but for rounding, so the interval closes on it
    assert model.gains["psnr"] == pytest.approx((6.02, 6.02, 6.02), abs=0.1)
    assert model.gains["lpips_hed"].value == pytest.approx(0.25, abs=0.01)
    assert model.verdict == "goal"
    same = evaluate(lambda x: x, {"set": faces}, ("vqfr-v2",), networks=networks())[-1]
    assert same.gains["psnr"] == (0, 0, 0)
    assert same.gains["lpips_hed"] == (1, 1, 1)
    assert same.verdict.startswith("missed: PSNR +0.00 < +0.20 dB, lpips_hed 1.000x > 0.86x")


def test_method_scores_are_kept_and_follow_the_faces(faces: Images, tmp_path: Path) -> None:
    first = evaluate(None, {"set": faces}, ("mild",), ("input", "bilateral"), networks=networks())
    kept = sorted((tmp_path / "eval").glob("*.json"), reverse=True)
    assert len(kept) == 2
    wrong = json.loads(kept[-1].read_text()) | {"psnr": [1.0, 2.0, 3.0, 4.0]}
    kept[-1].write_text(json.dumps(wrong))
    again = evaluate(None, {"set": faces}, ("mild",), ("input", "bilateral"), networks=networks())
    assert again[1].scores["psnr"] == [1, 2, 3, 4]  # read, not computed
    assert again[0].scores == first[0].scores
    flipped = {"set": faces[:, :, ::-1].copy()}
    other = evaluate(None, flipped, ("mild",), ("input", "bilateral"), networks=networks())
    assert other[1].scores["psnr"] != [1, 2, 3, 4]
    assert len(list((tmp_path / "eval").glob("*.json"))) == 4


def gains(psnr_gain: float, lpips_hed: float, deg: float) -> dict[str, Interval]:
    values = {"psnr": psnr_gain, "lpips_hed": lpips_hed, "deg_dlib": deg, "ssim": 0.0}
    return {name: Interval(value, value, value) for name, value in values.items()}


@pytest.mark.parametrize("level", list(MUSTS))
def test_bars_hold_at_the_bar_and_fail_just_beyond(level: str) -> None:
    for bar in (MUSTS[level], GOALS[level]):
        at = (bar.psnr, bar.lpips_hed, bar.deg_dlib)
        assert shortfalls(gains(*at), bar) == []
        for i, step in enumerate((-0.01, 0.001, 0.01)):
            beyond = [value + step * (j == i) for j, value in enumerate(at)]
            assert len(shortfalls(gains(*beyond), bar)) == 1


def row(method: str, psnr_mean: float, lpips: float, deg: float) -> Row:
    spread = np.array([-0.1, 0.0, 0.1])
    scores = {
        "psnr": (psnr_mean + 10 * spread).tolist(),
        "ssim": (0.7 + spread).tolist(),
        "lpips_hed": (lpips * (1 + spread)).tolist(),
        "deg_dlib": (deg + spread).tolist(),
    }
    return Row("set", "vqfr-v1", method, scores)


def verdict(model: Row, *, nlm_lpips: float = 0.3) -> str:
    rows = [row("input", 25, 0.3, 10), row("bilateral", 25, 0.3, 10)]
    rows += [row("nlm", 25, nlm_lpips, 10), model]
    judge(rows)
    return model.verdict


def test_verdicts() -> None:
    assert verdict(row("model", 25.6, 0.15, 6)) == "goal"
    assert verdict(row("model", 25.1, 0.24, 10)) == "must"
    assert verdict(row("model", 24.9, 0.24, 10)) == "missed: PSNR -0.10 < +0.00 dB"
    assert verdict(row("model", 25.1, 0.24, 11)) == "missed: deg_dlib +1.00 > +0.50"
    beaten = verdict(row("model", 25.1, 0.24, 10), nlm_lpips=0.2)
    assert beaten == "missed: lpips_hed 0.240 >= nlm 0.200"


def test_ratio_of_means_is_not_the_mean_of_ratios() -> None:
    before = {"lpips_hed": [0.1, 0.4]}
    assert gains_over(before, {"lpips_hed": [0.1, 0.2]})["lpips_hed"].value == pytest.approx(0.6)


def test_table_shows_means_intervals_and_verdict() -> None:
    from rich.console import Console

    rows = [row("input", 25, 0.3, 10), row("model", 25.6, 0.15, 6)]
    judge(rows)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(eval_table(rows))
    text = console.export_text()
    for expected in (
        "set (3)",
        "25.00",
        "25.60",
        "+0.60 [+0.60, +0.60]",
        "0.500x [0.500, 0.500]",
        "goal",
    ):
        assert expected in text
    as_json = json.loads(json.dumps(rows[1].to_json()))
    assert as_json["gains"]["psnr"]["value"] == pytest.approx(0.6)
    assert as_json["scores"]["psnr"] == pytest.approx([24.6, 25.6, 26.6])
    assert as_json["means"]["deg_dlib"] == pytest.approx(6)


def test_bad_requests_are_refused(faces: Images) -> None:
    with pytest.raises(UsageError, match=r"\['median'\] are unknown; choose from input"):
        evaluate(None, {"set": faces}, ("mild",), ("median",), networks=networks())
    with pytest.raises(UsageError, match="'harsh' is unknown"):
        evaluate(None, {"set": faces}, ("harsh",), networks=networks())
    with pytest.raises(UsageError, match=r"the model returned uint8 \[4, 64, 64, 3\]"):
        evaluate(lambda x: x[:, ::2, ::2], {"set": faces}, ("mild",), networks=networks())


def test_markdown_says_what_changed():
    before = Row("generated", "mild", "input", {m: [2.0, 4.0] for m in METRICS})
    after = Row("generated", "mild", "model", {m: [1.0, 2.0] for m in METRICS})
    judge([before, after])
    lines = eval_markdown([before, after]).splitlines()
    assert len(lines) == 3
    assert "3.000 → 1.500: 0.500x [0.500, 0.500]" in lines[2]
    assert lines[2].startswith("| generated | mild | 3.00 → 1.50: -1.50 [")
    assert len({line.count("|") for line in lines}) == 1
