"""The embedded model keeps its promises on faces it never saw. Minutes; fetches its test faces on first use."""

from pathlib import Path

import pytest

from fr_deploy.bundle import load_bundle
from fr_deploy.restorer import load_restorer
from fr_training.evaluate import held_out_faces, run_eval
from fr_training.scoring import codebook_score

LEVELS = ("mild", "vqfr-v1", "vqfr-v2")
FACES = 32  # as `fr-deploy eval`, whose kept baseline scores then serve here; the 22 outside faces besides


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_embedded_model_meets_its_musts(tmp_path: Path) -> None:
    """Also that lpips_hed is below that of bilateral and non-local means: it is part of the verdict."""
    report = run_eval(
        load_restorer("lafr-mini"), generated=FACES, levels=LEVELS, out=tmp_path / "eval.json"
    )
    verdicts = {
        (r["set_name"], r["level"]): r["verdict"] for r in report["rows"] if r["method"] == "model"
    }
    assert len(verdicts) == 2 * len(LEVELS)
    assert {key: v for key, v in verdicts.items() if v not in ("must", "goal")} == {}


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_codebook_matters(level: str) -> None:
    faces, _ = held_out_faces(8)
    score = codebook_score(load_bundle("lafr-mini"), faces, level)
    assert score.shuffled >= 1.2 * score.aligned
    assert score.perplexity > 16
