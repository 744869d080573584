"""Launch settings of HDRFace's feature gate: what is taken where nothing was measured on the GPU."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fr_kernels.launch import Settings, Space
from fr_kernels.measured import precision, tuned

GATE_BACKWARD = Settings({"ROWS": 1, "STEPS": 8}, num_warps=8, num_stages=1)
HIDDEN_BACKWARD = Settings({"ROWS": 4, "STEPS": 4}, num_warps=4, num_stages=1)
NORM_BACKWARD = Settings({"ROWS": 2, "STEPS": 8}, num_warps=8, num_stages=1)

_WARPS = {"num_warps": (1, 16)}
_WHOLE_ROWS = {"ROWS": (1, 16), "STEPS": (1, 16), **_WARPS}
_TILES = {"ROWS": (16, 128), "UNITS": (16, 256), "CHANNELS": (16, 128)}
SPACES: Mapping[str, Space] = {
    "statistics": _WHOLE_ROWS,
    "hidden": {**_TILES, **_WARPS, "num_stages": (1, 4)},
    "blend": {**_TILES, **_WARPS, "STEPS": (1, 16)},
    "gate_backward": _WHOLE_ROWS,
    "hidden_backward": _WHOLE_ROWS,
    "norm_backward": _WHOLE_ROWS,
}
"""What may be varied of each kernel's settings."""


def statistics_settings(tokens: int) -> Settings:
    """Few tokens: 8 a program, so that one image gives many programs; many: 16, so that fewer sums are written."""
    steps = 4 if tokens <= 512 else 8
    return Settings({"ROWS": 2, "STEPS": steps}, num_warps=8, num_stages=1)


def hidden_settings(batch: int, tokens: int, units: int, dtype: torch.dtype) -> Settings:
    """The larger tile where it gives at least 96 programs, else the smaller one.

    float32 is multiplied without matrix instructions, from registers: the smallest.
    """
    if dtype is torch.float32:
        return Settings({"ROWS": 32, "UNITS": 32, "CHANNELS": 32}, num_warps=4, num_stages=2)
    if batch * -(-tokens // 64) * -(-units // 128) >= 96:
        return Settings({"ROWS": 64, "UNITS": 128, "CHANNELS": 32}, num_warps=8, num_stages=2)
    return Settings({"ROWS": 32, "UNITS": 64, "CHANNELS": 64}, num_warps=4, num_stages=2)


def blend_settings(tokens: int) -> Settings:
    """Each program computes its channels' gate again: more tokens a program where there are many."""
    blocks = {"ROWS": 32, "STEPS": 2 if tokens <= 512 else 4, "CHANNELS": 64, "UNITS": 64}
    return Settings(blocks, num_warps=4, num_stages=2)


def settings_of(kernel: str, default: Settings, features: Tensor) -> Settings:
    """Those measured for features [B, N, C] of this dtype on this GPU, else `default`."""
    batch, tokens, width = features.shape
    key = f"{kernel} B={batch} N={tokens} C={width} {precision(features.dtype)}"
    return tuned("sdfm_gate", key, default, SPACES[kernel], features.device)
