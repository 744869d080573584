"""The soaks of `make soak`, short."""

import json

import pytest

from fr_bench import soak
from fr_bench.soak_local import group_kills, memory
from fr_deploy.errors import FrDeployError, UsageError


@pytest.mark.slow
def test_kills_and_memory(tmp_path):
    (tmp_path / "kills").mkdir()
    figures = group_kills(tmp_path / "kills", items=120, kills=2)
    assert (figures["items"], figures["group_kills"]) == (120, 2)
    figures = memory(tmp_path, items=1300)
    assert list(figures["bytes"]) == [1000, 1170]


def test_an_entry_says_where_and_when(tmp_path, monkeypatch):
    monkeypatch.setattr(
        soak, "SOAKS", {"short": lambda folder: {"empty": not any(folder.iterdir())}}
    )
    results = tmp_path / "soak.json"
    soak.main(["short"], results)
    soak.main([], results)
    first, second = json.loads(results.read_text())
    assert first["soak"] == second["soak"] == "short"
    assert first["figures"] == {"empty": True}
    assert {"date", "cpu", "cores", "commit", "dirty", "torch"} <= first.keys()
    with pytest.raises(UsageError, match="no soak is called long; there are short"):
        soak.main(["long"], results)


def test_what_fails_is_not_written(tmp_path, monkeypatch):
    def lost(_):
        raise FrDeployError("an item was lost")

    monkeypatch.setattr(soak, "SOAKS", {"bad": lost})
    with pytest.raises(FrDeployError, match="lost"):
        soak.main([], tmp_path / "soak.json")
    assert not (tmp_path / "soak.json").exists()
