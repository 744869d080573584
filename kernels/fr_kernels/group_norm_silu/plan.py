"""How a forward pass is cut: channels into tiles of whole groups, pixels into parts, and one launch or two."""

from typing import NamedTuple

from torch import Tensor

from fr_kernels.group_norm_silu.tiles import WARPS, ceil_div, power_of_2, tuned_settings
from fr_kernels.launch import Settings

MOST_ALONE = 20_480
"""Values of one program that makes statistics and output alone: 256 pixels of 80 channels, the UNet's widest group at
16 x 16. All its norms at 16 x 16 and below are within it, and at 32 x 32 those of 320 and 640 channels."""
PROGRAMS = {"statistics": 256, "apply": 512}
"""Of one image, at most, in two launches: an image's pixels are cut into as many parts as the tiles of channels leave.
Every program of the second launch reads the sums of all the first's parts of its groups, 12 bytes each. 512 x 512 x 128
has 2 tiles of 16 groups, so 128 parts: 24 KB beside 256 KB of pictures (1024 pixels x 64 channels of half precision,
read and written). 64 x 64 x 320 has 8 of 4 groups, so 32 parts: 1.5 KB beside 10 KB."""
VALUES = {"statistics": 4096, "apply": 4096, "alone": 16_384}
"""Pixels x channels that a program holds at a time."""
_EACH = {"statistics": 512, "apply": 1024, "alone": 512}
"""Of them, those of one warp, up to 16 warps: 16 values a thread, because sums beside 32 spilled 8 bytes on sm_100;
the output has no sums."""


class Tile(NamedTuple):
    """Channels of one program: `pack` whole groups of `members` channels."""

    pack: int
    members: int

    @property
    def width(self) -> int:
        """Channels."""
        return self.pack * self.members

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time arguments of the kernels."""
        return {
            "CHANNELS": power_of_2(self.width),
            "MEMBERS": self.members,
            "PACK": self.pack,
            "GROUPS": power_of_2(self.pack),
        }

    def rows(self, kernel: str, pixels: int) -> int:
        """Pixels at a time."""
        return min(power_of_2(pixels), max(VALUES[kernel] // power_of_2(self.width), 1))


def pass_tile(members: int, groups: int) -> Tile:
    """Two launches: tiles that start at 16 bytes of half precision (8 channels), as wide as 64 channels hold.

    Groups of 4, 8, 16 channels: 64; of 10, 20, 40: 40; of 80: 80; of 30 and 60, that do not fit: 120.
    """
    pack = 8 // _gcd8(members)
    if pack * members > 256:  # an odd width: then 2 bytes at a time
        return Tile(1, members)
    while 2 * pack * members <= 64:
        pack *= 2
    return Tile(min(pack, groups), members)


def alone_tile(members: int, groups: int) -> Tile:
    """One launch: the least of at least 16 channels that starts at 8 bytes, so that many programs share the work.

    Groups of 40 and 80 channels start at 16 bytes.
    """
    pack = max(4 // min(_gcd8(members), 4), 1)
    if pack * members > 256:
        return Tile(1, members)
    while pack * members < 16:
        pack *= 2
    return Tile(min(pack, groups), members)


def _gcd8(members: int) -> int:
    """The largest power of two that divides it, at most 8."""
    return min(members & -members, 8)


def alone(pixels: int, members: int, groups: int) -> bool:
    """Whether one launch does all."""
    return pixels * alone_tile(members, groups).width <= MOST_ALONE


def launches(x: Tensor, w: Tensor, groups: int, shuffled: bool) -> int:
    """Of a forward pass."""
    height, width = x.shape[2:]
    pixels = 4 * (height - 1) * (width - 1) if shuffled else height * width
    return 1 if alone(pixels, len(w) // groups, groups) else 2


def settings_of(kernel: str, tile: Tile, pixels: int, like: Tensor) -> Settings:
    """The written settings, unless others were measured to be better on the GPU of `like`.

    kernel: "statistics", "apply" or "alone".
    """
    rows = tile.rows(kernel, pixels)
    if kernel == "alone" and like.element_size() > 2:
        rows = max(
            rows // 2, 1
        )  # all in float32 registers, 16,384 spilled 16 bytes on sm_80 to 90 with Triton 3.6
    values = rows * power_of_2(tile.width)
    # 16 warps for 8192 values left 64 registers a thread, and spilled 8 bytes on sm_120 with Triton 3.6.
    most = 8 if kernel == "alone" and values <= 8192 else 16
    warps = min(max(values // _EACH[kernel], 4), most)
    default = Settings({"PIXELS": rows}, warps, num_stages=1)
    return tuned_settings(kernel, tile.members, default, {"PIXELS": (1, 1024), **WARPS}, like)


def cut(kernel: str, pixels: int, rows: int, tiles: int) -> tuple[int, int]:
    """(parts, blocks of `rows` pixels in each) of an image whose channels are `tiles` tiles.

    kernel: "statistics" or "apply".
    """
    blocks = ceil_div(pixels, rows)
    steps = ceil_div(blocks, max(PROGRAMS[kernel] // tiles, 1))
    return ceil_div(blocks, steps), steps
