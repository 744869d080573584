"""group_norm_silu: which pictures take one launch, and that tiles and parts cover each picture once."""

import pytest
import torch

from fr_kernels.dispatch import declared_launches
from fr_kernels.group_norm_silu import plan
from fr_kernels.group_norm_silu.tiles import ceil_div

# Channels and side of the pictures that Stable Diffusion 2.1 normalises in 32 groups, one face of 512 pixels.
UNET_BELOW_32 = [(c, 16) for c in (640, 1280, 1920, 2560)] + [(c, 8) for c in (1280, 2560)]
UNET_32 = [(c, 32) for c in (320, 640, 960, 1280, 1920)]
LARGE = [(c, 64) for c in (320, 640, 960)] + [(128, 512), (256, 512), (512, 128), (512, 64)]


def launches(channels: int, side: int, batch: int = 1, shuffled: bool = False) -> int:
    sides = (4 * channels, side // 2 + 1, side // 2 + 1) if shuffled else (channels, side, side)
    with torch.device("meta"):
        x, w = torch.empty(batch, *sides), torch.empty(channels)
    return declared_launches(
        "group_norm_silu", x, w, w, 32, 1e-6, True, None, None, None, shuffled, "auto"
    )


@pytest.mark.parametrize("shuffled", [False, True])
def test_small_pictures_take_one_launch_and_large_ones_two(shuffled: bool) -> None:
    assert {launches(*shape, shuffled=shuffled) for shape in UNET_BELOW_32} == {1}
    assert [launches(*shape, shuffled=shuffled) for shape in UNET_32] == [1, 1, 2, 2, 2]
    assert {launches(*shape, shuffled=shuffled) for shape in LARGE} == {2}
    assert launches(1280, 16, batch=64, shuffled=shuffled) == 1


@pytest.mark.parametrize("members", [1, 2, 3, 4, 6, 7, 10, 16, 20, 30, 40, 60, 80, 100, 321])
@pytest.mark.parametrize("groups", [1, 3, 32])
def test_tiles_are_whole_groups(members: int, groups: int) -> None:
    for tile in (plan.pass_tile(members, groups), plan.alone_tile(members, groups)):
        assert 1 <= tile.pack <= groups
        assert tile.width <= max(256, members)
        constants = tile.constants
        assert tile.width <= constants["CHANNELS"] < 2 * tile.width
        assert tile.pack <= constants["GROUPS"] < 2 * tile.pack


def test_tiles_of_the_models_start_where_wide_loads_do() -> None:
    """At 16 bytes of half precision in two launches, at 8 in one; or the tile is all channels."""
    for members in (4, 8, 16, 10, 20, 30, 40, 60, 80):
        assert plan.pass_tile(members, 32).width % 8 == 0
        assert plan.alone_tile(members, 32).width % 4 == 0
        assert plan.alone_tile(members, 32).width >= 16


@pytest.mark.parametrize("tiles", [1, 8, 1000])
@pytest.mark.parametrize("rows", [1, 64, 128])
@pytest.mark.parametrize("pixels", [1, 35, 64, 4096, 36_865, 512 * 512])
def test_parts_cover_the_pixels_and_none_is_empty(pixels: int, rows: int, tiles: int) -> None:
    for kernel, most in plan.PROGRAMS.items():
        parts, steps = plan.cut(kernel, pixels, rows, tiles)
        assert parts <= max(most // tiles, 1)
        assert (parts - 1) * steps * rows < pixels <= parts * steps * rows


@pytest.mark.parametrize(("channels", "side"), [*UNET_32[2:], *LARGE])
def test_what_every_program_reads_again_is_small(channels: int, side: int) -> None:
    """The sums of all parts of its groups: a fifth of what it reads and writes of half precision, or less."""
    tile, pixels = plan.pass_tile(channels // 32, 32), side * side
    tiles = ceil_div(32, tile.pack)
    parts, _ = plan.cut("statistics", pixels, tile.rows("statistics", pixels), tiles)
    rows = tile.rows("apply", pixels)
    _, steps = plan.cut("apply", pixels, rows, tiles)
    again, once = 12 * tile.pack * parts, 4 * tile.width * rows * steps
    assert again <= min(24 * 1024, 0.2 * once)
    assert parts * tiles >= 128, "almost a program for each of the 132 multiprocessors of an H200"
