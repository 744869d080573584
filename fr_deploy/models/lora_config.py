"""What a LoRA's configuration says of its ranks and alphas, by PEFT's rules; what is no plain LoRA is refused."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from fr_deploy.errors import ModelError

MERGE = (
    "merge it with peft into a bundle of its own: from peft import PeftModel; from fr_deploy.bundle import "
    "load_bundle, save_bundle; model = load_bundle(BUNDLE); model.unet = PeftModel.from_pretrained(model.unet, "
    "FOLDER).merge_and_unload(); save_bundle(model, NEW)"
)
_NO_CHANGE = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
}  # fmt: skip
"""Fields that leave W + scale B A as it is, or are read here. Any other that is set changes the formula."""
_OFF = (None, False, "none", [], {}, ())
_BASE_KEPT = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take their
first B A out of the base, so that B A added to the original base is another model."""


class LoraConfig:
    """Ranks, alphas and targets, from `adapter_config.json` or from a file's metadata."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        """Check the fields.

        Args:
            fields: as PEFT writes them.
            where: named in errors.

        Raises:
            ModelError: not a LoRA, not a plain one, or `r` or `lora_alpha` is missing or no number.
        """
        self._where, self._fields = where, fields
        _refuse_other_kinds(fields, where)
        self.rank = self._number("r", fields.get("r"))
        self.alpha = self._number("lora_alpha", fields.get("lora_alpha"))

    def factor(self, module: str, rank: int) -> float:
        """What B A of a layer is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski, 2023).

        Args:
            module: the layer's name, as the configuration knows it.
            rank: of its tensors.

        Raises:
            ModelError: the configuration gives the layer another rank, or two alphas.
        """
        ranks = self._pattern("rank_pattern", module) or {self.rank}
        if rank not in ranks:
            said = " or ".join(f"{r:g}" for r in sorted(ranks))
            raise ModelError(
                f"{self._where}: {module} has rank {rank}, its configuration says {said}; they belong to different "
                "LoRAs. Save both together again: model.save_pretrained(FOLDER)"
            )
        alphas = self._pattern("alpha_pattern", module) or {self.alpha}
        if len(alphas) > 1:
            raise ModelError(
                f"{self._where}: patterns of alpha_pattern give {module} the alphas {sorted(alphas)}, and which of "
                "them peft meant depends on their order, which is not stored; write out one pattern a layer"
            )
        return alphas.pop() / (math.sqrt(rank) if self._fields.get("use_rslora") else rank)

    def promised(self, layers: Iterable[str]) -> set[str]:
        """Of a model's layers those that the configuration targets; none where it picks layers by number."""
        targets, without = (self._fields.get(k) for k in ("target_modules", "exclude_modules"))
        if self._fields.get("layers_to_transform") is not None:
            return set()
        return {n for n in layers if _picks(targets, n) and not _picks(without, n)}

    def _pattern(self, field: str, module: str) -> set[float]:
        """The values of all patterns that match a layer, by PEFT's rule."""
        try:
            return {
                self._number(f"{field}[{key!r}]", value)
                for key, value in (self._fields.get(field) or {}).items()
                if re.match(rf"(.*\.)?({key})$", module)
            }
        except re.error as error:
            raise ModelError(
                f"{self._where}: {field} holds a pattern that is none: {error}"
            ) from error

    def _number(self, field: str, value: object) -> float:
        if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
            return value
        raise ModelError(
            f"{self._where}: {field} is {value!r}; allowed is a number above 0 (peft would put 8 in the place of one "
            "that is missing). Write the one it was trained with into the configuration"
        )


def _refuse_other_kinds(fields: Mapping[str, Any], where: str) -> None:
    kind = str(fields.get("peft_type", "LORA")).upper().removeprefix("PEFTTYPE.")
    if kind != "LORA":
        raise ModelError(f"{where}: peft_type is {kind}; allowed is LORA. In place of it {MERGE}")
    if fields.get("fan_in_fan_out"):
        raise ModelError(
            f"{where}: fan_in_fan_out is true, but a bundle's linear layers are stored [out, in], so B A must be "
            'added as it is; write "fan_in_fan_out": false, which is what peft uses for them, too'
        )
    initial = fields.get("init_lora_weights")
    if initial not in _BASE_KEPT:
        raise ModelError(
            f"{where}: init_lora_weights is {initial!r}, which changed the base weights when training began; convert "
            "it: model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=INITIAL)"
        )
    given = {k: v for k, v in fields.items() if k not in _NO_CHANGE and v not in _OFF}
    if given:
        said = ", ".join(f"{name} = {value!r}" for name, value in sorted(given.items()))
        raise ModelError(
            f"{where}: {said}: no plain LoRA; allowed is W + scale B A. In place of it {MERGE}"
        )


def _picks(targets: object, layer: str) -> bool:
    """PEFT's rule: a text is a pattern of the whole name, a list holds names and their ends."""
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    ends = cast("list[str]", targets) if isinstance(targets, list) else []
    return any(layer == end or layer.endswith("." + end) for end in ends)
