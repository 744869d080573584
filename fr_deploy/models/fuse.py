"""LoRAs into the base weights they were trained beside: W' = W + sum of s alpha / r B A, computed in float64, rounded
once, and proved against the layer with its branch beside it (Hu et al., 2021, equation 3).

It works on tensors by name, as bundles and `LafrModel.state_dict()` have them, so it needs no diffusers and no peft.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fr_deploy.errors import ModelError, UsageError
from fr_deploy.models.lora import Branch, Lora, LoraFile, listed, read_lora

_AT_ONCE = 1 << 20
"""Weights: 8 MB in float64. A whole convolution of Stable Diffusion is 29 M of them."""
PARTS = ("unet", "vae", "adapter")
ALLOWED = 1e-5
"""Of a fused layer's output, relative to its largest value; float32 rounds weights by 6e-8."""
_STORED = (
    "a bundle holds its output as a constant, so nothing can be added to its weights. Save the LoRA without it, or "
    "fuse it into the Stable Diffusion folder before fr-deploy import-sd"
)
_CONSTANTS = (
    ("text_encoder", f"the text encoder: {_STORED}"),
    ("time_embedding", f"the time MLP: {_STORED}"),
    ("", "layers this model does not have: the LoRA was trained for another one. Name the model it belongs to with "
     "--model; fr-deploy inspect BUNDLE tells what one is"),
)  # fmt: skip


@dataclass(frozen=True)
class Fused:
    """Weights with LoRAs in them, and how exact they are."""

    tensors: dict[str, Tensor]
    """All of the model's; those fused are float32, or float64 where the base is."""
    loras: tuple[LoraFile, ...]
    layers: tuple[str, ...]
    """Names of the layers fused."""
    weight_error: float
    """The largest distance of a fused weight from float64, relative to its layer's largest."""
    output_error: float
    """The largest distance of a fused layer's output on random input from base + branch in float64, relative to the
    larger of the two terms."""

    def __str__(self) -> str:
        names = ", ".join(f"{lora.path} x {lora.scale:g}" for lora in self.loras)
        return (
            f"fused {names} into {len(self.layers)} layers: weights within {self.weight_error:.1e} of float64, "
            f"outputs within {self.output_error:.1e} of base + branch (allowed {ALLOWED:.0e})"
        )


def fuse(tensors: Mapping[str, Tensor], loras: Sequence[LoraFile]) -> Fused:
    """Add LoRAs to a model's weights, and prove every layer.

    Args:
        tensors: by the names of `LafrModel.state_dict()`, in any dtype; left as they are.
        loras: at least one; where several reach a layer, their sum is rounded once.

    Raises:
        ModelError: a file is wrong (`read_lora`), a tensor of it fits no layer, a layer it promises is missing, or
            a fused layer computes something else than base and branch.
        UsageError: no LoRA, or one file twice.
    """
    _refuse_twice(loras)
    planned: dict[str, list[Branch]] = {}
    for file in loras:
        for layer, branch in place(read_lora(file), tensors).items():
            planned.setdefault(layer, []).append(branch)
    fused, weight_error, output_error = dict(tensors), 0.0, 0.0
    for layer, branches in planned.items():
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        made = _fuse_layer(layer, tensors[weight], tensors.get(bias), branches)
        fused[weight] = made.weight
        if made.bias is not None:
            fused[bias] = made.bias
        weight_error = max(weight_error, made.weight_error)
        output_error = max(output_error, made.output_error)
    return Fused(fused, tuple(loras), tuple(planned), weight_error, output_error)


def place(lora: Lora, tensors: Mapping[str, Tensor]) -> dict[str, Branch]:
    """A LoRA's branches by the model's layers; only shapes of `tensors` are looked at.

    Names without a part ("down_blocks...") are those of the one part that has them all, else the UNet's.

    Raises:
        ModelError: a layer that the model lacks, another shape, a bias beside a layer that has none, or layers that
            the configuration promises and the file lacks.
    """
    shapes = {
        key.removesuffix(".weight"): tuple(tensor.shape)
        for key, tensor in tensors.items()
        if key.endswith(".weight") and tensor.dim() in (2, 4)
    }
    part = _part(lora.branches, shapes)
    named = {f"{part}{name}": branch for name, branch in lora.branches.items()}
    _refuse_unplaced(named.keys() - shapes.keys(), len(named), lora.where)
    wrong = [
        f"{name}: LoRA {_shape(branch)}, model {list(shapes[name])}"
        for name, branch in named.items()
        if _shape(branch) != list(shapes[name])
    ]
    if wrong:
        raise ModelError(
            f"{lora.where}: another shape than the model's in {listed(wrong)} layers: it was trained for a model "
            "of other widths (Stable Diffusion 1.x has a prompt of 768 channels, 2.x of 1024). Name that with --model"
        )
    if bare := [n for n, b in named.items() if b.bias is not None and f"{n}.bias" not in tensors]:
        raise ModelError(
            f"{lora.where}: lora_B.bias beside layers that have no bias: {listed(bare)}; train it with lora_bias=False "
            "there"
        )
    _refuse_missing(lora, part, named.keys(), shapes)
    return named


def _part(names: Iterable[str], shapes: Mapping[str, object]) -> str:
    """What must stand before a file's names: a part and a dot, or nothing where they have it."""
    names = list(names)
    if all(name.partition(".")[0] in (*PARTS, "text_encoder") for name in names):
        return ""
    fitting = [part for part in PARTS if all(f"{part}.{name}" in shapes for name in names)]
    return f"{fitting[0] if fitting else PARTS[0]}."


def _shape(branch: Branch) -> list[int]:
    """Of B A."""
    return [branch.up.shape[0], *branch.down.shape[1:]]


def _refuse_twice(loras: Sequence[LoraFile]) -> None:
    paths = [lora.path.resolve() for lora in loras]
    if not paths:
        raise UsageError("no LoRA to fuse; name one as PATH or PATH:SCALE")
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise UsageError(
            f"LoRA given twice: {listed(twice)}; its scale would count twice. Give it once, with the sum of the scales"
        )


def _refuse_unplaced(names: set[str], count: int, where: str) -> None:
    for word, reason in _CONSTANTS:
        if of_kind := [name for name in names if word in name]:
            raise ModelError(f"{where}: of {count} layers {listed(of_kind)} are {reason}")


def _refuse_missing(
    lora: Lora, part: str, got: Iterable[str], shapes: Mapping[str, object]
) -> None:
    """Layers that a configuration targets and the file has nothing for: peft would leave them untrained."""
    for of_part, config in lora.configs.items():
        prefix = f"{of_part}." if of_part else part
        below = {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
        lost = {f"{prefix}{name}" for name in config.promised(below)} - set(got)
        if lost:
            raise ModelError(
                f"{lora.where}: its configuration targets {listed(lost)} layers of the model that the file has no "
                "tensors for; fetch or save it again, or take them out of target_modules"
            )


@dataclass(frozen=True)
class _Layer:
    weight: Tensor
    bias: Tensor | None
    weight_error: float
    output_error: float


def _fuse_layer(
    name: str, weight: Tensor, bias: Tensor | None, branches: Sequence[Branch]
) -> _Layer:
    """One layer, a few rows at a time, with its proof: the layer and its branches run beside each other in float64.

    A convolution sees two kernel-sized pictures by seed with padding, so borders are in it; stride chooses among the
    same positions.
    """
    shift = sum(b.factor * b.bias.double() for b in branches if b.bias is not None)
    moved = bias
    if bias is not None and isinstance(shift, Tensor):
        moved = (bias.double() + shift).to(_rounded(bias))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, *weight.shape[1:]), generator=generator, dtype=torch.float64)
    inner = [_apply(x, branch.down, None) for branch in branches]
    fused = torch.empty_like(weight, dtype=_rounded(weight))
    weights, outputs = _Distance(), _Distance()
    step = max(1, _AT_ONCE // weight[0].numel())
    for rows in (slice(i, i + step) for i in range(0, len(weight), step)):
        exact = weight[rows].double() + sum(_delta(branch, rows) for branch in branches)
        fused[rows] = exact
        _refuse_not_finite(name, weight[rows], fused[rows])
        base = _apply(x, weight[rows], _of(bias, rows))
        side = sum(
            b.factor * _apply(h, b.up[rows], _of(b.bias, rows))
            for b, h in zip(branches, inner, strict=True)
        )
        assert isinstance(side, Tensor)
        weights.see(fused[rows], exact, exact)
        outputs.see(_apply(x, fused[rows], _of(moved, rows)), base + side, base, side)
    if not outputs.relative <= ALLOWED:
        raise ModelError(
            f"{name}: the fused layer's output is {outputs.relative:.1e} from base + branch; allowed is {ALLOWED:.0e}. "
            "Do not use it; this is a fault of the program or of the machine, not of the LoRA"
        )
    return _Layer(fused, moved, weights.relative, outputs.relative)


class _Distance:
    """The largest distance seen, relative to the largest value seen."""

    def __init__(self) -> None:
        self._largest = self._off = 0.0

    @property
    def relative(self) -> float:
        return self._off / self._largest if self._largest else self._off

    def see(self, got: Tensor, wanted: Tensor, *terms: Tensor) -> None:
        self._off = max(self._off, float((got - wanted).abs().max()))
        self._largest = max(self._largest, *(float(term.abs().max()) for term in terms))


def _rounded(base: Tensor) -> torch.dtype:
    return torch.promote_types(base.dtype, torch.float32)


def _of(bias: Tensor | None, rows: slice) -> Tensor | None:
    return None if bias is None else bias[rows]


def _delta(branch: Branch, rows: slice) -> Tensor:
    """Rows of factor B A in float64: [rows, I] or [rows, I, kh, kw]."""
    product = branch.up[rows].double().flatten(1) @ branch.down.double().flatten(1)
    return branch.factor * product.view(-1, *branch.down.shape[1:])


def _refuse_not_finite(name: str, base: Tensor, fused: Tensor) -> None:
    if not bool(base.isfinite().all()):
        raise ModelError(
            f"NaN or infinity in {name}.weight of the model; fetch or save the bundle again"
        )
    if not bool(fused.isfinite().all()):
        raise ModelError(f"{name}: NaN or infinity in the fused weight; choose a smaller scale")


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer in float64."""
    weight, bias = weight.double(), None if bias is None else bias.double()
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
