"""Attention: every kind that a CPU has computes the formula; the others say what they lack."""

import pytest
import torch
from torch import Tensor

from fr_deploy.errors import ResourceError, UsageError
from fr_deploy.models.attend import KINDS, attend, check_kind
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.torch_backend import TorchBackend

ON_CPU = ("sdpa", "flash", "math", "products")


def drawn(dtype: torch.dtype, width: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 2, 17, width), (3, 2, 9, width), (3, 2, 9, width))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("scale", [None, 1.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ON_CPU)
def test_a_kind_is_the_formula(kind: str, dtype: torch.dtype, scale: float | None) -> None:
    q, k, v = drawn(dtype)
    wide = [t.double() for t in (q, k, v)]
    weights = (wide[0] @ wide[1].mT * (24**-0.5 if scale is None else scale)).softmax(-1)
    exact = weights @ wide[2]
    got = attend(q, k, v, check_kind(kind), scale)
    assert (got.shape, got.dtype) == (q.shape, dtype)
    # Rounded inputs of size 1: scores and weights are off by a few units in the last place.
    assert (got.double() - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()


def test_scores_of_wide_heads_stay_in_range() -> None:
    """512 channels of size 20 make scores of 200,000: above float16's largest, were they scaled afterwards."""
    q = torch.full((1, 1, 4, 512), 20.0).half()
    out = attend(q, q, torch.ones(1, 1, 4, 512).half(), "products")
    assert torch.equal(out, torch.ones_like(out))


@pytest.mark.parametrize("kind", ON_CPU)
def test_a_graph_computes_the_same_with_each(kind: str) -> None:
    torch.manual_seed(0)
    model = LafrModel(PRESETS["lafr-toy"]).eval().requires_grad_(False)
    faces = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    plain = TorchBackend(RestorationGraph.of(model)).run(faces)
    chosen = TorchBackend(RestorationGraph.of(model), attention=kind).run(faces)
    assert (plain.int() - chosen.int()).abs().max() <= 1


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="attention is 'fast'; allowed: sdpa, flash, efficient"):
        check_kind("fast")
    monkeypatch.setattr("fr_deploy.models.attend.find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r'pip install "fr-deploy\[gpu\]"'):
        check_kind("xformers")
    assert [check_kind(kind) for kind in KINDS if kind != "xformers"] == [
        kind for kind in KINDS if kind != "xformers"
    ]
