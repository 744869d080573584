"""Launch settings of the backward kernels: tiles of pixels x channels, and sums of what the tiles left."""

from torch import Tensor

from fr_kernels.launch import Settings, Space
from fr_kernels.measured import precision, tuned

TILE = {"sums": 64, "gradient": 64}
"""Pixels of a tile, for each kernel that passes over the pictures."""
WARPS = {"num_warps": (1, 16)}


def ceil_div(size: int, tile: int) -> int:
    """Tiles that cover `size`."""
    return -(-size // tile)


def pass_settings(kernel: str, channels: int, pixels: int) -> Settings:
    """Tile of a pass: 64 channels (128 bytes of half precision) where they divide C, and `TILE` pixels.

    Where 64 does not divide C, half or a quarter of it may; else the last tile is partly empty. A thread holds at
    most 32 values: with 64, sums after a store spill on sm_100.
    """
    fitting = [block for block in (64, 32, 16) if channels % block == 0]
    block = fitting[0] if fitting else min(64, power_of_2(channels))
    rows = min(TILE[kernel], power_of_2(pixels))
    warps = 8 if rows * block > 4096 else 4
    return Settings({"PIXELS": rows, "CHANNELS": block}, warps, num_stages=1)


def settings_of(kernel: str, channels: int, pixels: int, like: Tensor) -> Settings:
    """`pass_settings`, unless others were measured to be better on the GPU of `like`."""
    space = {"PIXELS": (8, 256), "CHANNELS": (16, 256), **WARPS}
    return tuned_settings(kernel, channels, pass_settings(kernel, channels, pixels), space, like)


def grid_of(settings: Settings, pixels: int, channels: int, batch: int) -> tuple[int, int, int]:
    """(tiles of pixels, tiles of channels, images)."""
    blocks = settings.blocks
    tiles = ceil_div(pixels, blocks["PIXELS"])
    return tiles, ceil_div(channels, blocks["CHANNELS"]), batch


def combine_settings(tiles: int, members: int, like: Tensor) -> tuple[Settings, int]:
    """One group: all its channels and as many tiles at a time as make 4096 values; (settings, steps)."""
    width = power_of_2(members)
    rows = min(power_of_2(tiles), max(4096 // width, 1))
    warps = 8 if rows * width > 1024 else 4
    default = Settings({"TILES": rows, "MEMBERS": width}, num_warps=warps, num_stages=1)
    space = {"TILES": (1, 1024), **WARPS}
    settings = tuned_settings("group_sums", members, default, space, like)
    return settings, ceil_div(tiles, settings.blocks["TILES"])


def parameter_settings(batch: int, channels: int, like: Tensor) -> tuple[Settings, int]:
    """64 channels of at most 32 images at a time; (settings, steps)."""
    images = min(power_of_2(max(batch, 1)), 32)
    default = Settings({"IMAGES": images, "CHANNELS": 64}, num_warps=4, num_stages=1)
    space = {"IMAGES": (1, 64), "CHANNELS": (16, 256), **WARPS}
    settings = tuned_settings("parameters", channels, default, space, like)
    return settings, ceil_div(batch, settings.blocks["IMAGES"])


def power_of_2(size: int) -> int:
    """The least one that is not below `size`."""
    return 1 << (size - 1).bit_length()


def tuned_settings(
    kernel: str, size: int, default: Settings, space: Space, like: Tensor
) -> Settings:
    """What was measured for a kernel on the GPU of `like`, else `default`; size: what else the choice depends on."""
    key = f"{kernel} {size} {precision(like.dtype)}"
    return tuned("group_norm_silu", key, default, space, like.device)
