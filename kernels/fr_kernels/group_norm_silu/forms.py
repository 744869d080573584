"""The compiled forms of the group normalisation kernels: VAE, UNet and lafr-mini, half precision, and float32.

The forward kernels know the channels of a group when they are compiled, because tiles hold whole groups; C is a
run-time number. To the backward's passes over the pictures all multiples of 64 (128 to 2560) are one form, "C=64n", and
C = 96 another, "C=32n" (32 channels a tile).
"""

from typing import Any

import torch

from fr_kernels.group_norm_silu import plan, triton_backward, triton_impl, triton_sums
from fr_kernels.group_norm_silu.plan import Tile
from fr_kernels.group_norm_silu.tiles import (
    TILE,
    ceil_div,
    combine_settings,
    parameter_settings,
    pass_settings,
    power_of_2,
)
from fr_kernels.launch import Settings, Specialization

_LARGE = 512 * 512
_LIKES = {"fp32": torch.empty(0), "fp16": torch.empty(0, dtype=torch.float16)}
_LIKE = _LIKES["fp32"]
_WIDE = ("PART", "STATS", "GROUP", "SUMS", "EACH")
_NUMBERS = ("values", "area", "eps")
# Integers that need not be divisible by 16.
_ODD = ("members", "tiles", "batch", "steps")


def specializations() -> list[Specialization]:
    """Forward and backward."""
    return [*_statistics(), *_apply(), *_alone(), *_sums(), *_parameters(), *_gradient()]


def _form(
    kernel: Any,
    title: str,
    dtype: str,
    constants: dict[str, Any],
    settings: Settings,
    principal: bool = False,
) -> Specialization:
    constants = {**constants, **settings.blocks}
    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in constants:
            continue
        if name.isupper() and name != "C":
            signature[name] = "*fp32" if name in _WIDE else f"*{dtype}"
        else:
            signature[name] = "fp32" if name in _NUMBERS else "i32"
    integers = tuple(n for n, t in signature.items() if t == "i32" and n not in _ODD)
    title = f"{kernel.__name__.removesuffix('_kernel')} {title}"
    return Specialization(
        title, kernel, signature, constants, settings, integers, principal=principal
    )


def _added(text: str) -> dict[str, bool]:
    """What is added to x before it is normalised."""
    names = ("residual", "bias", "skip", "shuffled")
    return {("" if n == "shuffled" else "HAS_") + n.upper(): n in text for n in names}


def _statistics() -> list[Specialization]:
    forms: list[Specialization] = []
    for added, dtype, channels, members, pixels in (
        ("x", "fp16", 128, 4, _LARGE),
        ("x+residual", "fp16", 128, 4, _LARGE),
        ("x+residual+bias", "fp16", 128, 4, _LARGE),
        ("shuffled+bias", "fp16", 256, 8, _LARGE),
        ("x+residual+bias", "fp16", 512, 16, 64 * 64),
        ("x+residual+bias", "fp16", 320, 10, 64 * 64),
        ("x", "fp16", 960, 30, 64 * 64),
        ("x+residual+bias", "fp16", 96, 6, 64 * 64),
        ("x+residual+bias+skip", "fp16", 960, 30, 64 * 64),
        ("shuffled+bias+skip", "fp16", 960, 30, 64 * 64),
        ("x+residual+bias+skip", "fp16", 224, 14, 64 * 64),
        ("x+residual", "fp32", 128, 4, _LARGE),
    ):
        tile = plan.pass_tile(members, channels // members)
        settings = plan.settings_of("statistics", tile, pixels, _LIKE)
        constants = {**_added(added), **tile.constants}
        title = f"{added} {dtype} {_place(channels, pixels)}"
        main = (added, dtype, members) == ("x+residual+bias", "fp16", 4)
        kernel = triton_impl.statistics_kernel
        forms.append(_form(kernel, title, dtype, constants, settings, main))
    return forms


def _place(channels: int, pixels: int) -> str:
    return f"C={channels} {pixels} pixels"


def _parts(tile: Tile, groups: int, pixels: int) -> int:
    """Of the statistics."""
    rows = plan.settings_of("statistics", tile, pixels, _LIKE).blocks["PIXELS"]
    return plan.cut("statistics", pixels, rows, ceil_div(groups, tile.pack))[0]


def _apply() -> list[Specialization]:
    forms: list[Specialization] = []
    for act, dtype, channels, members, pixels in (
        ("silu", "fp16", 128, 4, _LARGE),
        ("silu", "fp16", 512, 16, 64 * 64),
        ("none", "fp16", 320, 10, 64 * 64),
        ("silu", "fp16", 960, 30, 64 * 64),
        ("silu", "fp16", 96, 6, 64 * 64),
        ("silu", "fp32", 128, 4, _LARGE),
    ):
        tile = plan.pass_tile(members, channels // members)
        settings = plan.settings_of("apply", tile, pixels, _LIKE)
        parts = power_of_2(_parts(tile, channels // members, pixels))
        constants = {"SILU": act == "silu", **tile.constants, "PARTS": parts}
        title = f"{act} {dtype} {_place(channels, pixels)}"
        main = (act, dtype, members) == ("silu", "fp16", 4)
        forms.append(_form(triton_impl.apply_kernel, title, dtype, constants, settings, main))
    return forms


def _alone() -> list[Specialization]:
    """The UNet's norms at 32 x 32, 16 x 16 and 8 x 8, and lafr-mini's."""
    forms: list[Specialization] = []
    for added, dtype, channels, members, pixels in (
        ("x+residual+bias", "fp16", 640, 20, 32 * 32),
        ("x+residual+bias", "fp16", 1280, 40, 16 * 16),
        ("x+residual+bias+skip", "fp16", 1920, 60, 16 * 16),
        ("shuffled+bias+skip", "fp16", 2560, 80, 16 * 16),
        ("x+residual+bias+skip", "fp16", 2560, 80, 16 * 16),
        ("x+residual+bias", "fp16", 1280, 40, 8 * 8),
        ("x+residual+bias", "fp16", 96, 6, 16 * 16),
        ("x+residual+bias", "fp32", 1280, 40, 16 * 16),
    ):
        tile = plan.alone_tile(members, channels // members)
        settings = plan.settings_of("alone", tile, pixels, _LIKES[dtype])
        steps = ceil_div(pixels, settings.blocks["PIXELS"])
        constants = {**_added(added), **tile.constants, "SILU": True, "STEPS": steps}
        title = f"{added} {dtype} {_place(channels, pixels)}"
        main = (added, dtype, channels, pixels) == ("x+residual+bias", "fp16", 1280, 256)
        forms.append(_form(triton_impl.alone_kernel, title, dtype, constants, settings, main))
    return forms


def _sums() -> list[Specialization]:
    return [
        _form(
            triton_backward.sums_kernel,
            f"{'bias ' * biased}{dtype} C={channels}n",
            dtype,
            {"SILU": True, "HAS_DH": biased, "HAS_BIAS": biased},
            pass_settings("sums", channels, _LARGE),
            (biased, dtype, channels) == (True, "fp16", 64),
        )
        for biased, dtype, channels in (
            (False, "fp16", 64),
            (True, "fp16", 64),
            (False, "fp16", 32),
            (False, "fp32", 64),
        )
    ]


def _parameters() -> list[Specialization]:
    forms: list[Specialization] = []
    for channels, members, pixels, biased in (
        (128, 4, _LARGE, False),
        (1280, 40, 16 * 16, True),
    ):
        tiles = ceil_div(pixels, TILE["sums"])
        settings, steps = combine_settings(tiles, members, _LIKE)
        constants = {"HAS_BIAS": biased, "STEPS": steps}
        title = f"{'bias ' * biased}fp16 C={channels} {pixels} pixels"
        kernel = triton_sums.group_sums_kernel
        forms.append(_form(kernel, title, "fp16", constants, settings, biased))
    settings, steps = parameter_settings(16, 1280, _LIKE)
    constants = {"HAS_BIAS": True, "STEPS": steps}
    kernel = triton_sums.parameters_kernel
    return [*forms, _form(kernel, "bias fp16 16 images", "fp16", constants, settings, True)]


def _gradient() -> list[Specialization]:
    return [
        _form(
            triton_backward.gradient_kernel,
            f"{source} {dtype} C={channels}n",
            dtype,
            {
                "SILU": True,
                "HAS_DH": "dh" in source,
                "HAS_SKIP": "skip" in source,
                "SHUFFLED": "shuffled" in source,
            },
            pass_settings("gradient", channels, _LARGE),
            (source, dtype, channels) == ("dy+dh", "fp16", 64),
        )
        for source, dtype, channels in (
            ("dy+dh", "fp16", 64),
            ("shuffled dy+dh", "fp16", 64),
            ("dy+dh to skip", "fp16", 64),
            ("dy+dh", "fp16", 32),
            ("dy+dh", "fp32", 64),
        )
    ]
