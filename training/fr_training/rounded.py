"""Weights in half the bytes or a quarter, for a machine that everything must be carried to; good for training alone.

A tensor is stored as float16, or as int8 with `NAME.scale`, float32 [O], one factor for each output channel.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fr_deploy.errors import UsageError

_MARK = {"rounded": "1"}
_SCALE = ".scale"


def save_rounded(
    tensors: Mapping[str, Tensor],
    path: Path,
    *,
    bytewise: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float32 tensors rounded, others as they are; the file says so in its metadata.

    Args:
        tensors: by name.
        path: the safetensors file.
        bytewise: names of those that become int8, [O, ...]; the others become float16.
        metadata: what the file says besides.
    """
    kept: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            kept[name] = value
        elif name in bytewise:
            scale = value.abs().flatten(1).amax(1).clamp_min(1e-30) / 127
            kept[name + _SCALE] = scale
            kept[name] = (value / scale.view(-1, *[1] * (value.ndim - 1))).round().to(torch.int8)
        else:
            kept[name] = value.half()
    save_file(kept, path, {**(metadata or {}), **_MARK})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `save_rounded` wrote, in float32 again; other tensors unchanged."""
    made: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        if (scale := tensors.get(name + _SCALE)) is not None:
            made[name] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        else:
            made[name] = value.float() if value.dtype == torch.float16 else value
    return made


def is_rounded(path: Path) -> bool:
    """Whether a safetensors file is one of `save_rounded`."""
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
    return _MARK.items() <= metadata.items()


def require_exact(path: Path) -> None:
    """Refuse weights that were rounded: scores made with them compare with no others.

    Raises:
        UsageError: they were.
    """
    if is_rounded(path):
        raise UsageError(
            f"{path} is rounded, for training alone; to score with exact weights: rm {path}, "
            "and it is made again from its package"
        )
