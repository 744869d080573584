"""What `fr_kernels.tune` measures of codebook matching: one face and 16 of lafr-sd21 and lafr-mini, 1024 codes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fr_kernels.codebook import reference, triton_argmin, triton_backward, triton_impl
from fr_kernels.launch import Tunable

# features, codes, dimensions
SHAPES = ((4096, 1024, 256), (4096, 1024, 64), (65536, 1024, 256), (65536, 1024, 64))
SMALL = ((50, 45, 24),)


def tunables(small: bool = False) -> list[Tunable]:
    """The hard lookup first, as inference runs it; then what training adds."""
    shapes = SMALL if small else SHAPES
    made: list[Tunable] = []
    for dtype in (torch.float16, torch.float32):
        for shape in shapes:
            made += [_nearest(dtype, *shape), _nearest_backward(dtype, *shape)]
            for indexed in (False, True):
                made += [_soft(dtype, *shape, indexed), _soft_backward(dtype, *shape, indexed)]
    return [*made, *_argmin(*shapes[0][:2])]


def _name(kind: str, dtype: torch.dtype, n: int, k: int, d: int) -> str:
    return f"{kind} {str(dtype).removeprefix('torch.')} N={n} K={k} D={d}"


def _random(dtype: torch.dtype, device: torch.device, n: int, k: int, d: int) -> list[Tensor]:
    return [torch.randn(rows, d, device=device).to(dtype) for rows in (n, k)]


def _distance(codes: Tensor, features: Tensor) -> Tensor:
    """What must agree of a choice: of two codes equally near, either may be chosen."""
    wide = torch.promote_types(features.dtype, torch.float32)
    return (features.double() - codes.double()).square().sum(1).to(wide)


def _nearest(dtype: torch.dtype, n: int, k: int, d: int) -> Tunable:
    def compared(outputs: Sequence[Tensor], features: Tensor, _: Tensor) -> list[Tensor]:
        return [_distance(outputs[0], features)]

    return Tunable(
        _name("nearest", dtype, n, k, d),
        lambda device: tuple(_random(dtype, device, n, k, d)),
        triton_impl.nearest_code,
        reference.nearest_code,
        compared,
    )


def _nearest_backward(dtype: torch.dtype, n: int, k: int, d: int) -> Tunable:
    def inputs(device: torch.device) -> tuple[Any, ...]:
        grad, codebook = _random(dtype, device, n, k, d)
        return grad, torch.randint(k, (n,), device=device).int(), codebook

    return Tunable(
        _name("nearest backward", dtype, n, k, d),
        inputs,
        lambda *given: (triton_backward.nearest_code_backward(*given),),
        lambda *given: (reference.nearest_code_backward(*given),),
    )


def _soft(dtype: torch.dtype, n: int, k: int, d: int, indexed: bool) -> Tunable:
    def compared(outputs: Sequence[Tensor], features: Tensor, *__: Any) -> list[Tensor]:
        codes, _, value, stats = outputs
        soft = [value + stats[2]] if indexed else []
        return [_distance(codes, features), stats[0], stats[1], *soft]

    return Tunable(
        _name("index" if indexed else "embed", dtype, n, k, d),
        lambda device: (*_random(dtype, device, n, k, d), 0.5 / d, indexed),
        triton_impl.soft_lookup,
        reference.soft_lookup,
        compared,
    )


def _soft_backward(dtype: torch.dtype, n: int, k: int, d: int, indexed: bool) -> Tunable:
    def inputs(device: torch.device) -> tuple[Any, ...]:
        features, codebook = _random(dtype, device, n, k, d)
        _, index, _, stats = reference.soft_lookup(features, codebook, 0.5 / d, indexed)
        grad = torch.randn(n, device=device) if indexed else torch.randn_like(features)
        return grad, features, codebook, index, stats, 0.5 / d, indexed

    return Tunable(
        _name(f"{'index' if indexed else 'embed'} backward", dtype, n, k, d),
        inputs,
        triton_backward.soft_lookup_backward,
        reference.soft_lookup_backward,
    )


def _argmin(n: int, k: int) -> list[Tunable]:
    """The soft index, in float32: its settings depend on the length of a row alone."""

    def x(device: torch.device) -> Tensor:
        return torch.randn(n, k, device=device)

    return [
        Tunable(
            f"argmin N={n} K={k}",
            lambda device: (x(device), 1.0, False),
            triton_argmin.differentiable_argmin,
            reference.differentiable_argmin,
            lambda outputs, *_: [outputs[0]],
        ),
        Tunable(
            f"argmin backward N={n} K={k}",
            lambda device: (torch.randn(n, device=device), x(device), 1.0),
            lambda *given: (triton_argmin.differentiable_argmin_backward(*given),),
            lambda *given: (reference.differentiable_argmin_backward(*given),),
        ),
    ]
