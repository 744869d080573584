"""LoRAs as plain pairs of matrices by layer, read without peft or diffusers; what has no place in one is an error.

peft 0.21 and diffusers 0.42 only warn about tensors that fit no layer, and go on; `.alpha` tensors in a file of
diffusers' names they leave aside without a word, so that B A counts r / alpha times what it should.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.lora_config import MERGE, LoraConfig
from fr_deploy.models.lora_disk import DIFFUSERS_WEIGHTS, load_lora

_OLD_NAMES = (
    ("base_model.model.", ""), (".processor.", "."), (".to_out_lora.", ".to_out.0.lora."),
    (".to_q_lora.", ".to_q.lora."), (".to_k_lora.", ".to_k.lora."), (".to_v_lora.", ".to_v.lora."),
    (".lora.down.", ".lora_A."), (".lora.up.", ".lora_B."),
)  # fmt: skip
"""PEFT's prefix, and the names of diffusers before it used PEFT's."""
_TENSOR = re.compile(r"(.+)\.lora_(A\.weight|B\.weight|B\.bias)")
_ALPHA = re.compile(r"(.+?)(?:\.lora_A\.weight)?\.alpha")
_CONVERT = (
    "convert them with diffusers: from diffusers.loaders import StableDiffusionLoraLoaderMixin as L; "
    "weights, alphas, _ = L.lora_state_dict(FILE, return_lora_metadata=True); safetensors.torch.save_file(weights | "
    f'{{k: torch.tensor(float(a)) for k, a in alphas.items()}}, "{DIFFUSERS_WEIGHTS}")'
)
_REASONS = (
    (r"^lora_(unet|te\d?)_|\.lora_(down|up)\.", f"kohya's names; {_CONVERT}"),
    (r"lora_magnitude_vector|dora_scale", f"DoRA, which is no plain LoRA; {MERGE}"),
    (r"hada_|lokr_|lora_mid|oft_|ia3_", f"LyCORIS or another method, no plain LoRA; {MERGE}"),
    (r"lora_embedding_", "an adapted embedding; allowed are linear layers and convolutions"),
    (r"\.lora_[AB]\.[^.]+\.", "an adapter's name within; peft leaves it out: model.save_pretrained(FOLDER)"),
    (r"", f"whole weights beside the LoRA (bias='all', modules_to_save), which no scale applies to; {MERGE}"),
)  # fmt: skip


@dataclass(frozen=True)
class LoraFile:
    """Which LoRA, and how much of it."""

    path: Path
    scale: float = 1.0
    """Times alpha / r."""
    alpha: float | Literal["rank"] | None = None
    """For a file that holds none; "rank" is alpha = r, as in diffusers' training scripts."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError(f"the scale of {self.path} is {self.scale}; allowed: a finite number")
        alpha = self.alpha
        if isinstance(alpha, float | int) and not (math.isfinite(alpha) and alpha > 0):
            raise UsageError(f"alpha of {self.path} is {alpha}; allowed: above 0, or 'rank'")


@dataclass(frozen=True)
class Branch:
    """One layer's part: W x becomes W x + factor (B (A x) + bias)."""

    down: Tensor
    """A: [r, I], or [r, I, kh, kw] with the stride and padding of the convolution beside it."""
    up: Tensor
    """B: [O, r] or [O, r, 1, 1]."""
    bias: Tensor | None
    """[O], as peft's `lora_bias` trains it."""
    factor: float
    """alpha / r (rsLoRA: alpha / sqrt(r)), times the scale asked for."""


@dataclass(frozen=True)
class Lora:
    """What a file holds."""

    where: str
    branches: dict[str, Branch]
    """By the layers' names in the file, PEFT's prefix taken off."""
    configs: dict[str, LoraConfig]
    """By the model's part they speak of: "unet", or "" for all."""


def parse_lora(text: str) -> LoraFile:
    """`PATH[:SCALE][:alpha=N]`, as on the command line; N is a number or "rank".

    Raises:
        UsageError: no path, a scale that is not finite, or another alpha.
    """
    rest, _, said = text.rpartition(":alpha=")
    alpha: float | Literal["rank"] | None = None
    if rest:
        alpha = "rank" if said == "rank" else _number(said)
        if alpha is None:
            raise UsageError(f"{text!r}: alpha is {said!r}; allowed: a number above 0, or 'rank'")
    path, _, last = (rest or text).rpartition(":")
    scale = _number(last) if path else None
    name, scale = (rest or text, 1.0) if scale is None else (path, scale)
    if not name or name.startswith(":"):
        raise UsageError(f"{text!r} names no LoRA; write PATH, PATH:SCALE or PATH:SCALE:alpha=N")
    return LoraFile(Path(name), scale, alpha)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_lora(file: LoraFile) -> Lora:
    """Read one file and check all that needs no model.

    Raises:
        ModelError: missing, damaged or a pickle; tensors of another method or of none; half a pair, two ranks in
            one pair, a rank the configuration does not know, an alpha missing or said twice, values that are not
            finite or all zero.
    """
    where, tensors, fields = load_lora(file.path)
    configs = {part: LoraConfig(of_part, where) for part, of_part in fields.items()}
    layers, alphas = _by_layer(tensors, where)
    _refuse_broken(layers, where)
    factors = _factors(
        {k: len(v["A.weight"]) for k, v in layers.items()}, alphas, configs, file, where
    )
    branches = {
        name: Branch(of["A.weight"], of["B.weight"], of.get("B.bias"), file.scale * factors[name])
        for name, of in layers.items()
    }
    return Lora(where, branches, configs)


def listed(names: Iterable[str]) -> str:
    """A count and the first six names."""
    every = sorted(names)
    return f"{len(every)} ({', '.join(every[:6])}{', ...' if len(every) > 6 else ''})"


def _by_layer(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Pairs and alphas by layer."""
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        name = key
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        if found := _TENSOR.fullmatch(name):
            of = layers.setdefault(found[1], {})
            if found[2] in of:
                raise ModelError(
                    f"{where}: {key} is there twice, under an older name, too; keep one"
                )
            of[found[2]] = tensor
        elif (found := _ALPHA.fullmatch(name)) and tensor.numel() == 1:
            alphas[found[1]] = _positive(float(tensor), f"{where}: {key}")
        else:
            unknown.append(key)
    _refuse_unknown(unknown, where)
    if not layers:
        raise ModelError(f"{where} holds no LoRA: no tensor is named LAYER.lora_A.weight")
    if stray := alphas.keys() - layers.keys():
        raise ModelError(
            f"{where}: alphas of layers without a LoRA: {listed(stray)}; save it again"
        )
    return layers, alphas


def _refuse_unknown(keys: list[str], where: str) -> None:
    for pattern, reason in _REASONS:
        if of_kind := [key for key in keys if re.search(pattern, key)]:
            raise ModelError(
                f"{where}: {listed(of_kind)} tensors have another name than lora_A.weight, lora_B.weight, "
                f"lora_B.bias or alpha: {reason}"
            )


def _refuse_broken(layers: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
    """Half a pair, ranks that differ, values that are no weights."""
    if half := [name for name, of in layers.items() if not {"A.weight", "B.weight"} <= of.keys()]:
        raise ModelError(
            f"{where}: lora_A or lora_B is missing of {listed(half)} layers; fetch or save it again"
        )
    every = [(f"{name}.lora_{k}", t) for name, of in layers.items() for k, t in of.items()]
    if bad := [k for k, t in every if not t.is_floating_point() or not bool(t.isfinite().all())]:
        raise ModelError(
            f"{where}: NaN, infinity or no floating point numbers in {listed(bad)} tensors; allowed are finite values "
            "in float16, bfloat16, float32 or float64. Save it again from an earlier checkpoint"
        )
    wrong = [
        f"{name}: A {list(of['A.weight'].shape)}, B {list(of['B.weight'].shape)}"
        for name, of in layers.items()
        if not _is_pair(of["A.weight"], of["B.weight"])
    ]
    if wrong:
        raise ModelError(
            f"{where}: A and B do not share a rank in {listed(wrong)} layers; allowed are A [r, I] with B [O, r], and "
            "A [r, I, kh, kw] with B [O, r, 1, 1]. Save it again, all shards gathered"
        )
    if not any(bool(of["B.weight"].any()) or "B.bias" in of for of in layers.values()):
        raise ModelError(
            f"{where}: every lora_B is zero, so it changes nothing; it was not trained"
        )


def _is_pair(down: Tensor, up: Tensor) -> bool:
    plain = down.dim() == up.dim() == 2
    conv = down.dim() == up.dim() == 4 and up.shape[2:] == (1, 1)
    return (plain or conv) and down.shape[0] == up.shape[1] > 0


def _factors(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    configs: Mapping[str, LoraConfig],
    file: LoraFile,
    where: str,
) -> dict[str, float]:
    """By layer, what its B A is multiplied by, said exactly once."""
    factors: dict[str, float] = {}
    for name, rank in ranks.items():
        said = _said(name, rank, alphas, configs)
        if file.alpha is not None:
            said["alpha= of the command"] = 1.0 if file.alpha == "rank" else file.alpha / rank
        if len(set(said.values())) > 1 or (file.alpha is not None and len(said) > 1):
            ways = ", ".join(f"{how} {factor * rank:g}" for how, factor in said.items())
            raise ModelError(
                f"{where}: the alpha of {name} is said more than once: {ways}; "
                "allowed is one. Leave out alpha=, or delete one of the two from the file"
            )
        if said:
            factors[name] = next(iter(said.values()))
    if without := ranks.keys() - factors.keys():
        common = max(ranks.values())
        raise ModelError(
            f"{where}: no alpha for {listed(without)} layers; diffusers would take alpha = r without saying so. "
            f"Say what it was trained with: --lora {file.path}:{file.scale:g}:alpha=rank for alpha = r "
            f"(here {common}), or alpha=N"
        )
    return factors


def _said(
    name: str, rank: int, alphas: Mapping[str, float], configs: Mapping[str, LoraConfig]
) -> dict[str, float]:
    said: dict[str, float] = {}
    part, _, rest = name.partition(".")
    if part in configs:
        said["configuration"] = configs[part].factor(rest, rank)
    elif "" in configs:
        said["configuration"] = configs[""].factor(name, rank)
    if name in alphas:
        said[".alpha"] = alphas[name] / rank
    return said


def _positive(alpha: float, name: str) -> float:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ModelError(f"{name} is {alpha}; allowed is a number above 0. Save the LoRA again")
    return alpha
