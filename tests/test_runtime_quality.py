"""bfloat16 is used only where it keeps the faces: as well as saving them does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fr_deploy.bundle import load_graph
from fr_deploy.errors import UsageError
from fr_deploy.runtime import quality, select
from fr_deploy.runtime.devices import Place
from fr_deploy.runtime.quality import gate_face, refuse_if_worse_than_saving
from fr_deploy.runtime.select import Request, load_backend


class Changed:
    """The gate's face, changed."""

    name, device, dtype, size, limit = "changed", "cpu", "bf16", 512, 32

    def __init__(self, noise: float = 0, shift: int = 0) -> None:
        self.noise, self.shift = noise, shift

    def run(self, faces: Tensor) -> Tensor:
        noise = np.random.default_rng(0).normal(0, self.noise, faces.shape)
        made = (faces.numpy() + noise).round().clip(0, 255).astype(np.uint8)
        return torch.from_numpy(np.roll(made, self.shift, 2))

    def close(self) -> None:
        pass


def test_the_face_has_a_face_at_every_size() -> None:
    assert gate_face(512).shape == (1, 512, 512, 3)
    assert gate_face(64).shape == (1, 64, 64, 3)
    assert gate_face(512).float().std() > 30


def test_less_than_saving_takes_passes_and_more_does_not() -> None:
    exact = Changed()
    same = refuse_if_worse_than_saving(Changed(), exact)
    assert same.psnr_db == float("inf")
    assert same.degrees == pytest.approx(0, abs=0.05)
    with pytest.raises(
        UsageError, match=r"bf16 does not keep this model's faces: .* Choose --dtype fp16 or fp32"
    ):
        refuse_if_worse_than_saving(Changed(noise=6), exact)
    with pytest.raises(UsageError, match="does not keep"):
        refuse_if_worse_than_saving(Changed(shift=3), exact)


def test_a_backend_in_bfloat16_passes_the_gate_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def gate(backend: quality.Backend, exact: quality.Backend) -> None:
        asked.append(f"{backend.dtype} against {exact.dtype}")

    monkeypatch.setattr(select, "refuse_if_worse_than_saving", gate)
    monkeypatch.setattr(select, "load_graph", lambda _: load_graph("lafr-mini"))
    for dtype in ("bf16", "fp32"):
        assert load_backend("lafr-mini", Request(device="cpu", dtype=dtype)).dtype == dtype
    assert asked == ["bf16 against fp32"]
    assert Place(torch.device("cpu"), "bf16").label == "cpu"
