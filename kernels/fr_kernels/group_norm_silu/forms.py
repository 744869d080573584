"""The compiled forms of the group normalisation kernels: VAE, UNet and lafr-mini, half precision, and float32.

C is a run-time number: all multiples of 64 (128 to 2560) run one form of each pass over the pictures, "C=64n". What
differs is C = 96, "C=32n" (32 channels a tile), and the combination of a group's 4 to 80 channels.
"""

from typing import Any

import torch

from fr_kernels.group_norm_silu import triton_backward, triton_impl
from fr_kernels.group_norm_silu.tiles import (
    TILE,
    ceil_div,
    combine_settings,
    parameter_settings,
    pass_settings,
)
from fr_kernels.launch import Settings, Specialization

GROUPS = (
    (128, 4, 512 * 512),
    (512, 16, 256 * 256),
    (320, 10, 64 * 64),
    (2560, 80, 16 * 16),
)
"""Channels, channels a group, most pixels they come with."""

_LARGE = 512 * 512
_WIDE = ("STATS", "PART", "GROUP", "SUMS", "EACH")
_NUMBERS = ("values", "area", "eps")
_ODD = ("members", "tiles", "batch")  # integers that need not be divisible by 16


def specializations() -> list[Specialization]:
    """Forward and backward."""
    return [*_statistics(), *_combine(), *_apply(), *_sums(), *_parameters(), *_gradient()]


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


def _statistics() -> list[Specialization]:
    return [
        _form(
            triton_impl.statistics_kernel,
            f"{added} {dtype} C={channels}n",
            dtype,
            {
                "HAS_RESIDUAL": "residual" in added,
                "HAS_BIAS": "bias" in added,
                "SHUFFLED": "shuffled" in added,
            },
            pass_settings("statistics", channels, _LARGE),
            (added, dtype, channels) == ("x+residual", "fp16", 64),
        )
        for added, dtype, channels in (
            ("x", "fp16", 64),
            ("x+residual", "fp16", 64),
            ("x+residual+bias", "fp16", 64),
            ("shuffled+bias", "fp16", 64),
            ("x+residual", "fp16", 32),
            ("x+residual", "fp32", 64),
        )
    ]


def _combine() -> list[Specialization]:
    forms: list[Specialization] = []
    for channels, members, pixels in GROUPS:
        tiles = ceil_div(pixels, TILE["statistics"])
        settings, steps = combine_settings("combine", tiles, members, torch.empty(0))
        constants = {"PIXELS": TILE["statistics"], "STEPS": steps}
        title = f"C={channels} {pixels} pixels"
        kernel, main = triton_impl.combine_kernel, members == 4
        forms.append(_form(kernel, title, "fp32", constants, settings, main))
    return forms


def _apply() -> list[Specialization]:
    return [
        _form(
            triton_impl.apply_kernel,
            f"{act} {dtype} C={channels}n",
            dtype,
            {"SILU": act == "silu"},
            pass_settings("apply", channels, _LARGE),
            (act, dtype, channels) == ("silu", "fp16", 64),
        )
        for act, dtype, channels in (
            ("silu", "fp16", 64),
            ("none", "fp16", 64),
            ("silu", "fp16", 32),
            ("silu", "fp32", 64),
        )
    ]


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
        settings, steps = combine_settings("group_sums", tiles, members, torch.empty(0))
        constants = {"HAS_BIAS": biased, "STEPS": steps}
        title = f"{'bias ' * biased}fp16 C={channels} {pixels} pixels"
        kernel = triton_backward.group_sums_kernel
        forms.append(_form(kernel, title, "fp16", constants, settings, biased))
    settings, steps = parameter_settings(16, 1280, torch.empty(0))
    constants = {"HAS_BIAS": True, "STEPS": steps}
    kernel = triton_backward.parameters_kernel
    return [*forms, _form(kernel, "bias fp16 16 images", "fp16", constants, settings, True)]


def _gradient() -> list[Specialization]:
    return [
        _form(
            triton_backward.gradient_kernel,
            f"{source} {dtype} C={channels}n",
            dtype,
            {"SILU": True, "HAS_DH": "dh" in source, "SHUFFLED": "shuffled" in source},
            pass_settings("gradient", channels, _LARGE),
            (source, dtype, channels) == ("dy+dh", "fp16", 64),
        )
        for source, dtype, channels in (
            ("dy+dh", "fp16", 64),
            ("shuffled dy+dh", "fp16", 64),
            ("dy+dh", "fp16", 32),
            ("dy+dh", "fp32", 64),
        )
    ]
