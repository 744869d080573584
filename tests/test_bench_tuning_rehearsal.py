"""The rehearsal of tuning: the real search and the real file, with the interpreter's times."""

from pathlib import Path

import pytest
import torch

from fr_bench import tuning_rehearsal
from fr_bench.tuning_rehearsal import NAME, rehearse
from fr_kernels import tune
from fr_kernels.measured import gpu_file_name, read


@pytest.mark.parametrize("op", ["phase_shuffle", "geglu"])
def test_the_search_runs_and_its_file_holds_what_it_found(op: str, tmp_path: Path) -> None:
    said: list[str] = []
    entries = rehearse(op, tmp_path, said.append)
    assert len(entries) == 2, "forward and backward"
    assert all(e.median_us > 0 and e.default_us > 0 for e in entries.values())
    assert read(tmp_path / f"{NAME}.json") == {op: entries}
    assert sum(" us, default " in line for line in said) == 2
    small = [t for t in tune.tunables(op, small=True) if "float32" not in t.name]
    offered = [tune.Workload(t, torch.device("cpu")).asked for t in small]
    for key, (_, space) in {k: v for asked in offered for k, v in asked.items()}.items():
        chosen = entries[key].settings().arguments()
        assert all(least <= chosen[name] <= most for name, (least, most) in space.items())


def test_nothing_measured_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_rehearsal, "tunables", lambda *_, **__: [])
    with pytest.raises(RuntimeError, match="phase_shuffle: 0 entries measured"):
        rehearse("phase_shuffle", tmp_path, print)


def test_it_asks_for_the_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["rehearsal", "-o", str(tmp_path)])
    monkeypatch.setattr(tuning_rehearsal, "interpreting", lambda: False)
    with pytest.raises(SystemExit, match=r"TRITON_INTERPRET=1 python -m fr_bench.tuning_rehearsal"):
        tuning_rehearsal.main()
    assert gpu_file_name("NVIDIA H200") != f"{NAME}.json"
