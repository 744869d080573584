"""LoRA files on disk: PEFT's folder and diffusers' file; never a pickle."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fr_deploy.errors import ModelError

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Under this name diffusers stores PEFT's configuration in a file, each field with its model's part before it."""
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_ALLOWED = (
    f"allowed are a folder with {PEFT_CONFIG} and {PEFT_WEIGHTS} (peft: model.save_pretrained(FOLDER)) and "
    f"{DIFFUSERS_WEIGHTS} (diffusers: pipeline.save_lora_weights(FOLDER, ...))"
)


class Contents(NamedTuple):
    """A LoRA as it lies on disk, nothing interpreted yet."""

    where: str
    """The file of the weights, for errors."""
    tensors: dict[str, Tensor]
    configs: dict[str, dict[str, Any]]
    """PEFT's fields by the model's part they speak of: "unet", "text_encoder", or "" for all that the file holds."""


def load_lora(path: Path) -> Contents:
    """Read a folder or file.

    Raises:
        ModelError: there is none, it is a pickle, or it is damaged.
    """
    weights = weights_file(path)
    tensors, metadata = _tensors(weights)
    beside = weights.with_name(PEFT_CONFIG)
    if weights.name == PEFT_WEIGHTS and beside.is_file():
        configs = {"": _fields(beside.read_text(), str(beside))}
    elif METADATA in metadata:
        configs = _by_part(_fields(metadata[METADATA], f"{weights}, metadata {METADATA!r}"))
    else:
        configs = {}
    return Contents(str(weights), tensors, configs)


def weights_file(path: Path) -> Path:
    """The file of a LoRA's tensors.

    Raises:
        ModelError: there is none, or it is a pickle.
    """
    if path.suffix in _PICKLES:
        raise ModelError(
            f"{path} is a pickle, which can run any program; {_ALLOWED}. Convert it where it came from: "
            "from safetensors.torch import save_file; save_file(torch.load(FILE, weights_only=True), NEW)"
        )
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(
            f"no LoRA {str(path)!r}; {_ALLOWED}, written as PATH or PATH:SCALE. "
            "From the hub: hf download REPO --local-dir FOLDER"
        )
    found = [path / name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (path / name).is_file()]
    if len(found) != 1:
        held = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
        raise ModelError(f"{path} holds {held}; {_ALLOWED}. Name the file itself if there are more")
    return found[0]


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            f"{path} is damaged or not safetensors: {error}; fetch or save it again"
        ) from error


def _fields(text: str, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{where} is damaged: {error}; save the LoRA again") from error
    if not isinstance(fields, dict):
        raise ModelError(
            f"{where} holds no fields, but {type(fields).__name__}; save the LoRA again"
        )
    return fields


def _by_part(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"unet.r": 4, ...}` -> `{"unet": {"r": 4, ...}}`; without parts, `{"": fields}`."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        part, _, field = name.rpartition(".")
        parts.setdefault(part, {})[field] = value
    return parts
