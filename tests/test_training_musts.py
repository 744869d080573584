"""The embedded model on faces it never saw, against its musts. Minutes; fetches its test faces on first use."""

import pytest

from fr_deploy.bundle import load_bundle
from fr_deploy.restorer import load_restorer
from fr_training.evaluate import held_out_faces, run_eval
from fr_training.scoring import codebook_score

LEVELS = ("mild", "vqfr-v1", "vqfr-v2")
SETS = ("generated", "outside")
FACES = 32  # as `fr-deploy eval`, whose kept baseline scores then serve here; the 22 outside faces besides
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    out = tmp_path_factory.mktemp("eval") / "eval.json"
    report = run_eval(load_restorer("lafr-mini"), generated=FACES, levels=LEVELS, out=out)
    rows = [row for row in report["rows"] if row["method"] == "model"]
    return {(row["set_name"], row["level"]): row["verdict"] for row in rows}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("faces", SETS)
def test_musts(verdicts: dict[tuple[str, str], str], faces: str, level: str) -> None:
    """PSNR, lpips_hed and deg_dlib against the input, and lpips_hed against bilateral and non-local means."""
    assert verdicts[faces, level] in ("must", "goal")


@pytest.mark.parametrize("level", LEVELS)
def test_the_codebook_matters(level: str) -> None:
    faces, _ = held_out_faces(8)
    score = codebook_score(load_bundle("lafr-mini"), faces, level)
    assert score.shuffled >= 1.2 * score.aligned
    assert score.perplexity > 16
