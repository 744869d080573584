"""LoRAs fused into weights equal peft's own branch beside the layer: weights, layers, whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fr_deploy.errors import ModelError
from fr_deploy.models import fuse as fusing
from fr_deploy.models.fuse import fuse, place
from fr_deploy.models.lafr import build_unet
from fr_deploy.models.lora import Branch, Lora, LoraFile
from fr_deploy.models.presets import PRESETS
from lora_cases import CONVOLUTIONS, LINEARS, adapted, diffusers_file, peft_folder, toy

KINDS = {
    "convolutions, r = 4": {},
    "linear layers, r = 16": {"r": 16, "lora_alpha": 16, "target_modules": LINEARS},
    "both, ranks and alphas by pattern": {
        "target_modules": [*CONVOLUTIONS, *LINEARS],
        "rank_pattern": {"to_q": 2, "^conv_in": 3},
        "alpha_pattern": {"to_q": 5, "down_blocks.*conv1": 1},
    },
    "rsLoRA": {"use_rslora": True},
    "with biases": {"lora_bias": True},
    "half precision": {"dtype": torch.float16},
}


def saved(kind: str, folder: Path, unet: nn.Module) -> Path:
    config = dict(KINDS[kind])
    dtype = config.pop("dtype", None)
    path = peft_folder(folder, unet, **config)
    if dtype:
        file = path / "adapter_model.safetensors"
        save_file({k: v.to(dtype) for k, v in load_file(file).items()}, file)
        for name, tensor in unet.named_parameters():
            if "lora_" in name:
                tensor.data = tensor.data.to(dtype).to(tensor.dtype)
    return path


def merged(unet: nn.Module, scale: float = 1.0) -> dict[str, Tensor]:
    """By peft, in the model's dtype."""
    for module in unet.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(scale)
            module.merge()
    state = unet.state_dict()
    return {f"unet.{k.replace('.base_layer', '')}": v for k, v in state.items() if "lora_" not in k}


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("scale", [1.0, -0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_are_pefts_in_float64(kind: str, scale: float, tmp_path: Path) -> None:
    model = toy(torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    path = saved(kind, tmp_path / "lora", model.unet)
    fused = fuse(before, [LoraFile(path, scale)])
    wanted = merged(model.unet, scale)
    assert {k: v.shape for k, v in fused.tensors.items()} == {k: v.shape for k, v in before.items()}
    changed = {k for k, v in fused.tensors.items() if not torch.equal(v, before[k])}
    assert {key.rpartition(".")[0] for key in changed} == set(fused.layers)
    assert any(".bias" in key for key in changed) == (kind == "with biases")
    for key, tensor in wanted.items():
        assert relative(fused.tensors[key], tensor) <= 1e-12, key
    assert fused.weight_error == 0
    assert fused.output_error <= 1e-14


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_branch_beside_the_layer_in_float32(
    kind: str, tmp_path: Path
) -> None:
    model = toy()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse(before, [LoraFile(saved(kind, tmp_path / "lora", model.unet))])
    plain = toy()
    x, prompt = torch.randn(2, 4, 16, 16), plain.prompt.expand(2, -1, -1)
    base = plain.unet(x, 399, prompt).sample
    plain.load_state_dict(fused.tensors)
    wanted = model.unet(x, 399, prompt).sample
    assert relative(plain.unet(x, 399, prompt).sample, wanted) <= 1e-5
    assert relative(base, wanted) > 1e-2, "the LoRA changes the picture"
    assert 0 < fused.weight_error <= 2**-24, "rounded once"
    assert 0 < fused.output_error <= 1e-6


def test_rows_at_a_time_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = [LoraFile(peft_folder(tmp_path, toy().unet, lora_bias=True))]
    whole = fuse(toy().state_dict(), lora)
    monkeypatch.setattr(fusing, "_AT_ONCE", 1000)
    parts = fuse(toy().state_dict(), lora)
    assert all(relative(parts.tensors[k], v) <= 2**-23 for k, v in whole.tensors.items())
    assert parts.output_error <= 2 * whole.output_error


def test_half_precision_weights_become_float32_and_round_once(tmp_path: Path) -> None:
    path = peft_folder(tmp_path, toy().unet)
    tensors = {k: v.half() for k, v in toy().state_dict().items()}
    wide = fuse({k: v.double() for k, v in tensors.items()}, [LoraFile(path)])
    fused = fuse(tensors, [LoraFile(path)])
    for layer in fused.layers:
        made = fused.tensors[f"{layer}.weight"]
        assert torch.equal(made, wide.tensors[f"{layer}.weight"].float())
    assert fused.tensors["vae.encoder.conv_in.weight"].dtype == torch.float16, "left as it was"


def test_several_loras_add_up_whatever_their_order(tmp_path: Path) -> None:
    one = peft_folder(tmp_path / "one", toy().unet)
    two = diffusers_file(tmp_path / "two", toy().unet, target_modules=["conv1", *LINEARS], r=3)
    base = toy(torch.float64).state_dict()
    files = [LoraFile(one, 0.7), LoraFile(two, 1.6)]
    both = fuse(base, files).tensors
    swapped = fuse(base, files[::-1]).tensors
    after = fuse(fuse(base, files[:1]).tensors, files[1:]).tensors
    for key, tensor in both.items():
        assert relative(swapped[key], tensor) <= 1e-12
        assert relative(after[key], tensor) <= 1e-12
    text = str(fuse(base, files))
    assert "one x 0.7" in text
    assert f"{two} x 1.6 into" in text


def test_both_formats_of_one_lora_are_the_same(tmp_path: Path) -> None:
    pattern = {"target_modules": LINEARS, "alpha_pattern": {"to_v": 2}}
    base = toy().state_dict()
    by_peft = fuse(base, [LoraFile(peft_folder(tmp_path / "peft", toy().unet, **pattern))])
    unet = toy().unet
    file = diffusers_file(tmp_path / "diffusers", unet, **pattern)
    alphas = {
        f"unet.{name}.alpha": torch.tensor(2.0 if name.endswith("to_v") else 8.0)
        for name, module in unet.named_modules()
        if hasattr(module, "lora_A")
    }
    old = {
        k.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."): v
        for k, v in load_file(file).items()
    }
    save_file(old | alphas, tmp_path / "alphas.safetensors")
    unet.save_lora_adapter(tmp_path / "unprefixed", adapter_name="default")
    for path in (
        file,
        tmp_path / "diffusers",
        tmp_path / "alphas.safetensors",
        tmp_path / "unprefixed",
    ):
        fused = fuse(base, [LoraFile(path)])
        assert all(torch.equal(v, by_peft.tensors[k]) for k, v in fused.tensors.items()), path


def test_alpha_that_a_file_lacks_can_be_said(tmp_path: Path) -> None:
    file = diffusers_file(tmp_path, toy().unet, metadata=False)
    base = toy().state_dict()
    half, whole, number = (
        fuse(base, [lora]).tensors["unet.conv_in.weight"] - base["unet.conv_in.weight"]
        for lora in (LoraFile(file, 0.5, "rank"), LoraFile(file, 1, "rank"), LoraFile(file, 1, 12))
    )
    torch.testing.assert_close(2 * half, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(3 * whole, number, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["vae", "adapter", "whole model"])
def test_other_parts_than_the_unet(part: str, tmp_path: Path) -> None:
    model = toy(torch.float64)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    where, targets = {
        "vae": (model.vae, ["conv_in", "to_q"]),
        "adapter": (model.adapter, ["conv1"]),
        "whole model": (model, ["conv1"]),
    }[part]
    path = peft_folder(tmp_path, where, target_modules=targets)
    fused = fuse(base, [LoraFile(path)])
    parts = {layer.partition(".")[0] for layer in fused.layers}
    assert parts == ({"vae", "adapter", "unet"} if part == "whole model" else {part})


def test_a_fused_layer_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = peft_folder(tmp_path, toy().unet)
    right = fusing._delta
    monkeypatch.setattr(fusing, "_delta", lambda *given: right(*given) * (1 + 1e-4))
    with pytest.raises(ModelError, match=r"conv.*: the fused layer's output is .* from base"):
        fuse(toy().state_dict(), [LoraFile(path)])


def full_size(rank: int, targets: list[str]) -> tuple[Lora, dict[str, Tensor]]:
    """A LoRA beside Stable Diffusion 2.1's UNet, as peft makes it: shapes alone."""
    with torch.device("meta"):
        unet = build_unet(PRESETS["lafr-sd21"])
        tensors = {f"unet.{k}": v for k, v in unet.state_dict().items()}
        beside = adapted(unet, r=rank, target_modules=targets).base_model.model
    branches = {
        name: Branch(layer.lora_A["default"].weight, layer.lora_B["default"].weight, None, 1.0)
        for name, layer in beside.named_modules()
        if hasattr(layer, "lora_A")
    }
    return Lora("full size", branches, {}), tensors


@pytest.mark.parametrize(
    ("rank", "targets", "layers", "parameters"),
    [(4, CONVOLUTIONS, 66, 2_327_200), (16, LINEARS, 128, 3_319_808)],
    ids=["LAFR's conv-LoRA", "attention"],
)
def test_full_size_loras_find_their_layers(
    rank: int, targets: list[str], layers: int, parameters: int
) -> None:
    """LAFR's conv-LoRA, 2.3 M parameters: every convolution of the UNet, r = 4."""
    lora, tensors = full_size(rank, targets)
    placed = place(lora, tensors)
    assert sum(b.down.numel() + b.up.numel() for b in placed.values()) == parameters
    assert len(placed) == layers
    convolutions = {k.removesuffix(".weight") for k, v in tensors.items() if v.dim() == 4}
    assert (placed.keys() == convolutions) == (targets == CONVOLUTIONS)
