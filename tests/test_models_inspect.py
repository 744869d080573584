"""What folding takes out, pinned: FLOPs, launches and parameters at the paper's sizes."""

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from fr_deploy.cli import main
from fr_deploy.models.inspect import Stage, inspect_preset, totals
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.models.trace import trace
from fr_kernels import group_norm_silu


@pytest.fixture(scope="module")
def full_size() -> list[Stage]:
    return inspect_preset(PRESETS["lafr-sd21"])


def test_a_trace_counts_launches_and_products() -> None:
    with torch.device("meta"):
        x, w = torch.empty(2, 4, 8, 8), torch.empty(6, 4, 3, 3)
        q, k, ones = torch.empty(1, 3, 10, 16), torch.empty(1, 3, 7, 16), torch.empty(4)

    def call() -> torch.Tensor:
        y = F.silu(F.conv2d(x, w, padding=1)).permute(0, 2, 3, 1)
        group_norm_silu(x, ones, ones, 2)
        F.scaled_dot_product_attention(q, k, k)
        return y

    counted = trace(call)
    attention, convolution = 2 * 2 * 3 * 10 * 7 * 16, 2 * 2 * 8 * 8 * 6 * 4 * 9
    assert counted.flops == attention + convolution
    expected = {
        "convolution": 1,
        "silu": 1,
        "group_norm_silu": 1,
        "scaled_dot_product_attention": 1,
    }
    assert counted.launches == expected


def test_the_full_size_folded(full_size: list[Stage]) -> None:
    model, graph, kernels = (totals(full_size, form) for form in ("model", "graph", "kernels"))
    # The model still multiplies the prompt by 16 pairs of key and value weights: 3.94 of its GFLOP.
    assert (round(model.gflop, 1), round(kernels.gflop, 1)) == (4477.5, 4043.9)
    assert graph.gflop == kernels.gflop
    assert (model.total_launches, graph.total_launches, kernels.total_launches) == (1043, 778, 600)
    assert round(kernels.parameters / 1e6, 1) == 932.2


def test_what_folding_leaves_no_trace_of(full_size: list[Stage]) -> None:
    model, kernels = totals(full_size, "model").launches, totals(full_size, "kernels").launches
    gone = (
        "div",
        "upsample_nearest2d",
        "silu",
        "gelu",
        "cat",
        "native_group_norm",
        "native_layer_norm",
        "mm",
        "exp",
        "sin",
    )
    for name in gone:
        assert model[name] > 0
        assert name not in kernels


def test_what_is_static_has_no_parameters() -> None:
    """22 time projections and 32 products of the prompt are gone; folded upsampling has 16 taps where it had 9."""
    preset = PRESETS["lafr-sd21"]
    with torch.device("meta"):
        model, graph = LafrModel(preset), RestorationGraph(preset)
    named = {name: p.numel() for name, p in model.named_parameters() if name != "prompt"}
    static = {
        name for name in named if "time_emb" in name or ("attn2.to_" in name and name[-8] in "kv")
    }
    projections = [n for n in static if "time_emb_proj.weight" in n]
    products = [n for n in static if "attn2" in n]
    assert (len(projections), len(products)) == (22, 32)
    pruned = sum(count for name, count in named.items() if name not in static)
    assert round(pruned / 1e6, 1) == 901.3
    wider = sum(
        count * 7 // 9 for name, count in named.items() if name.endswith("upsamplers.0.conv.weight")
    )
    folded = sum(p.numel() for p in graph.parameters())
    assert (
        round((folded - wider) / 1e6, 1) == 902.2
    )  # the prompt as constants, the codes as a table


def test_the_command_counts_a_bundle_as_its_preset() -> None:
    documents = [
        json.loads(CliRunner().invoke(main, ["inspect", *arguments, "--json"]).output)
        for arguments in ([], ["lafr-mini"])
    ]
    assert documents[0] == documents[1]
    table = CliRunner().invoke(main, ["inspect", "lafr-toy"]).output
    assert "lafr-toy: one 64 px face" in table
    rows = [row for row in documents[0]["rows"] if row["stage"] == "total"]
    assert [row["form"] for row in rows] == ["model", "graph", "kernels"]
    assert rows[0]["gflop"] > rows[1]["gflop"]


def test_an_unknown_name_is_an_error_with_the_names_there_are() -> None:
    done = CliRunner().invoke(main, ["inspect", "nothing"])
    assert done.exit_code == 5
    assert "lafr-mini" in done.output
