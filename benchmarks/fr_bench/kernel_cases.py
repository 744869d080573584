"""What `fr-deploy bench kernels` runs: one case per op and shape, with the eager code it is held to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fr_kernels
from fr_bench import glue_cases
from fr_bench.case import Case, Inputs, Outputs, random
from fr_bench.face_cases import face_cases
from fr_kernels import SdfmWeights


def cases() -> list[Case]:
    """All cases, small ones first within each op; training's, forward and backward, after inference's."""
    return [
        *_with_training(_boosthub, (1, 96, 2), (1, 4096, 5), (8, 4096, 5), (1, 1024, 10)),
        *[_nearest(*shape) for shape in ((300, 128, 64), (4096, 1024, 256), (65536, 1024, 256))],
        *[_soft(*shape) for shape in ((200, 64, 32), (4096, 1024, 256), (65536, 1024, 256))],
        *_with_training(_argmin, (300, 128), (4096, 1024), (65536, 1024)),
        *_with_training(_sdfm, (2, 21, 64), (1, 201, 1024), (8, 201, 1024), (1, 1029, 1024)),
        *_with_training(glue_cases.conv3x3, (2, 56, 24, 18), (1, 128, 128, 512), (1, 512, 512, 64)),
        *_with_training(glue_cases.upsample_conv, (2, 24, 9), (1, 128, 64), (1, 512, 128)),
        *_with_training(
            glue_cases.group_norm,
            (2, 64, 16, 16),
            (1, 512, 64, 32),
            (1, 256, 256, 32),
            (1, 128, 512, 32),
        ),
        *_with_training(
            glue_cases.with_skip, (2, 40, 24, 9, 16), (1, 640, 320, 64, 32), (1, 1280, 1280, 16, 32)
        ),
        *_with_training(glue_cases.phase, (2, 8, 9), (1, 512, 128), (1, 256, 256)),
        *_with_training(glue_cases.layer_norm, (42, 72), (4096, 320), (1024, 640), (256, 1280)),
        *_with_training(glue_cases.geglu, (42, 72), (4096, 1280), (1024, 2560), (256, 5120)),
        *_with_training(glue_cases.settle, (2, 40, 9), (1, 128, 512), (1, 512, 128), (1, 640, 32)),
        *face_cases(),
    ]


def _with_training(make: Callable[..., Case], *shapes: tuple[int, ...]) -> list[Case]:
    made = [make(*shape) for shape in shapes]
    return [*made, *(_training(case) for case in made)]


def _training(case: Case) -> Case:
    """The same with its backward: what is compared are the gradients to every input."""

    def gradients(call: Callable[..., Any]) -> Callable[..., Outputs]:
        def both(*inputs: Tensor, **options: Any) -> Outputs:
            leaves = [t.detach().requires_grad_() for t in inputs]
            made = call(*leaves, **options)
            outputs = made if isinstance(made, tuple) else (made,)
            return torch.autograd.grad(outputs, leaves, [_into(out) for out in outputs])

        return both

    return replace(
        case,
        shape=f"{case.shape} forward and backward",
        ours=gradients(case.ours),
        eager=gradients(case.eager),
        peers={name: gradients(call) for name, call in case.peers.items()},
        backward=f"{case.op}_backward",
    )


def _into(out: Tensor) -> Tensor:
    """One fixed gradient that is exact in every dtype and whose sum is not 0."""
    steps = torch.arange(out.numel(), device=out.device).reshape(out.shape) % 7 - 2
    return steps.to(out.dtype) / 4


def _boosthub(batch: int, rows: int, heads: int) -> Case:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]

        return memory_efficient_attention(q, k, v)

    def two(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def both(*tensors: Tensor) -> Tensor:
            own, hub = attention(*tensors[:3]), attention(*tensors[3:6])
            return torch.stack([own, hub * tensors[6].to(hub.dtype)], 2)

        return both

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        tensors = [random(batch, rows, heads, 64)(device, dtype) for _ in range(6)]
        return (
            *tensors,
            torch.tensor(0.7, device=device).to(torch.promote_types(dtype, torch.float32)),
        )

    shape = f"B={batch} L=S={rows} H={heads} D=64"
    peers = {"sdpa": two(sdpa), "xformers": two(xformers)}
    ours, small = fr_kernels.boosthub_attention, rows < 1024
    return Case("boosthub_attention", shape, inputs, ours, two(attend), peers, on_cpu=small)


def _codebook_inputs(n: int, k: int, d: int) -> Callable[[torch.device, torch.dtype], Inputs]:
    return lambda device, dtype: (random(n, d)(device, dtype), random(k, d)(device, dtype))


def _nearest(n: int, k: int, d: int) -> Case:
    def eager(f: Tensor, c: Tensor) -> Tensor:
        wide = torch.promote_types(f.dtype, torch.float32)
        distances = c.to(wide).square().sum(1) - 2 * f.to(wide) @ c.to(wide).mT
        return c[distances.argmin(1)]

    def ours(f: Tensor, c: Tensor, impl: str) -> Tensor:
        return fr_kernels.nearest_code(f, c, impl=impl).codes

    def distance(codes: Tensor, f: Tensor, c: Tensor) -> Tensor:
        """A tie may be broken either way; the distance may not be larger."""
        del c
        return (f.double() - codes.double()).square().sum(1)

    shape = f"N={n} K={k} D={d}"
    inputs = _codebook_inputs(n, k, d)
    return Case(
        "nearest_code", shape, inputs, ours, eager, compared=distance, on_cpu=n < 1024, native=True
    )


def _soft(n: int, k: int, d: int) -> Case:
    beta = 0.5 / d

    def eager(f: Tensor, c: Tensor) -> Tensor:
        f = f.detach().requires_grad_()
        wide = torch.promote_types(f.dtype, torch.float32)
        a, b = f.to(wide), c.to(wide)
        weights = (2 * beta * a @ b.mT - beta * b.square().sum(1)).softmax(1)
        (grad,) = torch.autograd.grad((weights @ b).to(f.dtype), f, torch.ones_like(f))
        return grad

    def ours(f: Tensor, c: Tensor, impl: str) -> Tensor:
        f = f.detach().requires_grad_()
        codes = fr_kernels.soft_lookup(f, c, beta, impl=impl).codes
        (grad,) = torch.autograd.grad(codes, f, torch.ones_like(f))
        return grad

    shape = f"N={n} K={k} D={d} embed, forward and backward to f"
    inputs, small = _codebook_inputs(n, k, d), n < 1024
    backward = "soft_lookup_backward"
    return Case("soft_lookup", shape, inputs, ours, eager, backward=backward, on_cpu=small)


def _argmin(rows: int, columns: int) -> Case:
    def eager(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        places = torch.arange(columns, device=x.device, dtype=wide.dtype)
        soft = ((-wide).softmax(1) * places).sum(1)
        return (soft + (x.argmin(1) - soft).detach()).to(x.dtype)

    def ours(x: Tensor, impl: str) -> Tensor:
        return fr_kernels.differentiable_argmin(x, 1, impl=impl).value

    shape, inputs = f"[{rows}, {columns}] over the last", lambda *on: (random(rows, columns)(*on),)
    return Case("differentiable_argmin", shape, inputs, ours, eager, on_cpu=rows < 1024)


def _sdfm(batch: int, tokens: int, width: int) -> Case:
    hidden = width // 2

    def inputs(device: torch.device, dtype: torch.dtype) -> Inputs:
        def made(*shape: int) -> Tensor:
            return (random(*shape)(device, torch.float32) * shape[-1] ** -0.5).to(dtype)

        channel = (made(hidden, 3 * width), made(hidden), made(width, hidden), made(width))
        token = (made(hidden, 3 * width), made(hidden), made(1, hidden), made(1))
        features = [random(batch, tokens, width)(device, dtype) for _ in range(2)]
        return (*features, 1 + made(width), made(width), *channel, *token)

    def eager(f_sr: Tensor, f_lr: Tensor, *tensors: Tensor) -> Tensor:
        w = SdfmWeights(*tensors)
        a, b = (F.layer_norm(f, f.shape[-1:], w.norm_weight, w.norm_bias) for f in (f_sr, f_lr))
        all3 = torch.cat([a, b, (a - b).abs()], -1)
        pooled = F.silu(F.linear(all3.mean(1, keepdim=True), w.channel_w1, w.channel_b1))
        channel = F.linear(pooled, w.channel_w2, w.channel_b2).sigmoid()
        token = F.silu(F.linear(all3, w.token_w1, w.token_b1))
        token = F.linear(token, w.token_w2, w.token_b2).sigmoid()
        gate = (token * channel).to(torch.promote_types(a.dtype, torch.float32))
        gate = gate.clamp(1e-6, 1 - 1e-6)
        return (gate * a + (1 - gate) * b).to(a.dtype)

    def ours(f_sr: Tensor, f_lr: Tensor, *tensors: Tensor, impl: str) -> Tensor:
        return fr_kernels.sdfm_gate(f_sr, f_lr, SdfmWeights(*tensors), impl=impl)

    shape = f"B={batch} N={tokens} C={width}"
    return Case("sdfm_gate", shape, inputs, ours, eager, on_cpu=width < 384)
