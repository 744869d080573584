"""How the BoostHub attention kernels are launched: what they read, what they are compiled for, tile sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fr_kernels.launch import Settings, Space
from fr_kernels.measured import precision, tuned


def readable(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where the last dimension is not contiguous."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def constants_of(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """What every kernel is compiled for, from q, k, v, q_hub, k_hub, v_hub: the batch is not part of it."""
    q, k, _, _, k_hub, _ = tensors
    return {
        "STRIDES": tuple(t.stride()[:3] for t in tensors),
        "L": q.shape[1],
        "S": k.shape[1],
        "S_HUB": k_hub.shape[1],
        "D": q.shape[3],
        "WIDTH": width_of(q.shape[3]),
    }


def width_of(head: int) -> int:
    """The head width in registers: a power of two, at least the 16 that a matrix instruction takes."""
    return max(16, 1 << (head - 1).bit_length())


def settings_for(part: str, q: Tensor) -> Settings:
    """Settings of "forward", "dq" or "dkv": measured ones, else `default_settings`."""
    default = default_settings(part, q.dtype, q.shape[1], q.shape[3])
    key = f"{part} d={width_of(q.shape[3])} {precision(q.dtype)} rows={default.blocks['ROWS']}"
    return tuned("boosthub_attention", key, default, _space(q.dtype), q.device)


def _space(dtype: torch.dtype) -> Space:
    """A product takes at least 16 by 16; float32 keeps both its operands in registers."""
    most = 64 if dtype is torch.float32 else 128
    tiles = {"ROWS": (16, most), "KEYS": (16, most)}
    return {**tiles, "num_warps": (2, 16), "num_stages": (1, 5)}


def default_settings(part: str, dtype: torch.dtype, rows: int, head: int) -> Settings:
    """Tiles of ROWS queries by KEYS keys that keep their accumulators in registers on sm_80 to sm_120, at any length.

    The forward takes 128 queries where they are many, as each tile reads all keys, and 64 where 128 would leave an
    image of 20 heads fewer programs than a large GPU has multiprocessors (L = 256: 80 against 160). Masks cost
    registers: with 64 keys the forward spills 16 bytes on sm_80 at a width of 128 and 112 on sm_100 at 32; dkv with 64
    queries spills 88 on sm_120 at 64. float32 has no matrix instruction of its precision, so its operands lie in
    registers too: dkv spills at 64 on sm_100, 8 bytes with 8 warps and, in one stage with Triton 3.6, 28 with 16; at
    128 it spills 32 on sm_80 with 16.
    """
    wide = width_of(head) > 64
    if dtype is torch.float32:
        side = 16 if wide and part == "dq" else 32
        warps, stages = (16, 2) if part == "dkv" and not wide else (8, 1)
        return Settings({"ROWS": side, "KEYS": side}, warps, stages)
    if part == "dq":
        return Settings({"ROWS": 64, "KEYS": 32}, num_warps=4, num_stages=2)
    if part == "dkv":
        blocks = {"ROWS": 64 if wide else 32, "KEYS": 64}
        return Settings(blocks, num_warps=8 if wide else 4, num_stages=2)
    tall = rows > 256
    blocks = {"ROWS": 128 if tall else 64, "KEYS": 64 if width_of(head) == 64 else 32}
    return Settings(blocks, num_warps=8 if tall else 4, num_stages=3)
