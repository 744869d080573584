"""The graph's four parts, one behind the other, are the graph; codes can be forced."""

import pytest
import torch
from torch import Tensor

from fr_deploy.manifest import PARTS, WHOLE
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.parts import ENDS, Part, example
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.agreement import random_pictures

TOY = PRESETS["lafr-toy"]


@pytest.fixture(scope="module")
def graph() -> RestorationGraph:
    torch.manual_seed(0)
    return RestorationGraph.of(LafrModel(TOY).eval().requires_grad_(False)).double()


@pytest.mark.parametrize("most", [64, 2])
def test_one_behind_the_other_they_are_the_graph(graph: RestorationGraph, most: int) -> None:
    graph.most = most
    faces = random_pictures(64, 3)
    values: dict[str, Tensor] = {"faces": faces}
    for name in PARTS:
        made = Part(graph, name)(values[ENDS[name].takes])
        values |= zip(ENDS[name].gives, (made,) if isinstance(made, Tensor) else made, strict=True)
    assert torch.equal(values["restored"], graph(faces))
    restored, codes = Part(graph, WHOLE)(faces)
    assert torch.equal(restored, values["restored"])
    assert torch.equal(codes, values["codes"])
    assert codes.shape == (3, 256)
    stages = graph.stages(faces)
    for name in ("latent", "codes", "aligned", "denoised"):
        assert torch.allclose(getattr(stages, name), values[name], rtol=1e-12, atol=1e-12), name


def test_an_example_is_what_a_part_takes(graph: RestorationGraph) -> None:
    for name in (*PARTS, WHOLE):
        Part(graph, name)(example(graph, name, 2))


def test_a_part_has_its_own_weights_alone_by_the_names_of_the_graph(
    graph: RestorationGraph,
) -> None:
    whole = graph.state_dict()
    names = [set(Part(graph, name).state_dict()) for name in PARTS]
    assert set.union(*names) == set(whole) == set(Part(graph, WHOLE).state_dict())
    assert sum(map(len, names)) == len(whole)


def test_codes_can_be_forced(graph: RestorationGraph) -> None:
    faces = random_pictures(64, 2)
    own = graph.stages(faces)
    assert torch.equal(graph.stages(faces, own.codes.long()).picture, own.picture)
    other = own.codes.clone()
    other[1, 7] = (other[1, 7] + 1) % TOY.codes
    forced = graph.stages(faces, other)
    assert torch.equal(forced.latent, own.latent)
    assert torch.equal(forced.aligned[0], own.aligned[0])
    assert not torch.equal(forced.aligned[1], own.aligned[1])
    row = graph.adapter.align(own.latent, torch.full_like(own.codes, 3))
    graph.adapter.codebook.zero_()  # what is forced does not look at the codes' places
    assert torch.equal(graph.adapter.align(own.latent, torch.full_like(own.codes, 3)), row)
