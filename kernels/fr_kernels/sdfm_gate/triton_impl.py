"""HDRFace's feature gate in Triton, forward (formula: `reference.py`; kernels: `triton_kernels.py`).

Three launches. a, b and d = |a - b| are computed from f_sr and f_lr where they are needed, and
Wt1 [a; b; d] = Wa a + Wb b + Wd d, so no normalised copy and no tensor of 3C columns exists.

statistics  reads f_sr, f_lr [B, N, C]  -> mean, 1 / deviation [B, 4, N]; sums over a tile of tokens [B, T, 3, C]
hidden      both first layers, one tile [tokens, hidden units] a program -> channel_hidden [B, H], and each
            chunk's share of the token logits [B, H / UNITS, N]; the second layer is applied to the accumulator
blend       second layer of the channel gate, one block of channels a program -> out [B, N, C], a_t, a_c

The channel MLP's mean over the tokens is linear, so its first layer is the same matrix product as the token MLP's,
with tile sums in the place of tokens: mean_n Wc1 [a; b; d]_n = sum over the rows of (sums / N) Wc1^T.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fr_kernels.launch import Settings, Specialization, launch
from fr_kernels.sdfm_gate import triton_backward
from fr_kernels.sdfm_gate.reference import GATE_EPS, NORM_EPS, GateState, SdfmWeights
from fr_kernels.sdfm_gate.tiles import (
    blend_settings,
    hidden_settings,
    settings_of,
    statistics_settings,
)
from fr_kernels.sdfm_gate.triton_kernels import (
    blend_kernel,
    hidden_kernel,
    specialization,
    statistics_kernel,
)

Features = tuple[Tensor, Tensor, Tensor, Tensor]
"""f_sr, f_lr, the norm's weight and bias: the first arguments of every kernel."""


def sdfm_gate(f_sr: Tensor, f_lr: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, GateState]:
    """See `reference.sdfm_gate_with_state`; three launches, one more for each tensor that is not contiguous."""
    f_sr, f_lr, *rest = (t.contiguous() for t in (f_sr, f_lr, *weights))
    w = SdfmWeights(*rest)
    features = (f_sr, f_lr, w.norm_weight, w.norm_bias)
    stats, sums = _statistics(features)
    hidden, logits = _hidden(features, stats, sums, w)
    out, token, channel = _blend(features, stats, hidden, logits, w)
    return out, GateState(stats, token, channel, hidden)


def _statistics(features: Features) -> tuple[Tensor, Tensor]:
    """Mean and 1 / deviation of each token [B, 4, N]; sums of a, b, d over each tile [B, T, 3, C]."""
    f = features[0]
    batch, tokens, width = f.shape
    settings = settings_of("statistics", statistics_settings(tokens), f)
    tiles = triton.cdiv(tokens, settings.blocks["ROWS"] * settings.blocks["STEPS"])
    stats = f.new_empty(batch, 4, tokens, dtype=torch.float32)
    sums = f.new_empty(batch, tiles, 3, width, dtype=torch.float32)
    meta = _statistics_meta(width)
    grid = (tiles, batch)
    launch(statistics_kernel, grid, *features, stats, sums, tokens, settings=settings, **meta)
    return stats, sums


def _hidden(
    features: Features, stats: Tensor, sums: Tensor, w: SdfmWeights
) -> tuple[Tensor, Tensor]:
    """The channel MLP's hidden layer [B, H]; each chunk of hidden units' share of the token logits [B, chunks, N]."""
    f = features[0]
    (batch, tokens, width), units = f.shape, w.token_w1.shape[0]
    settings = settings_of("hidden", hidden_settings(batch, tokens, units, f.dtype), f)
    chunks = triton.cdiv(units, settings.blocks["UNITS"])
    hidden = f.new_empty(batch, units, dtype=torch.float32)
    logits = f.new_empty(batch, chunks, tokens, dtype=torch.float32)
    # Row tile 0 is the channel MLP's.
    grid = (chunks, triton.cdiv(tokens, settings.blocks["ROWS"]) + 1, batch)
    meta = {"C": width, "H": units, "TILES": sums.shape[1]}
    layers = (w.channel_w1, w.channel_b1, w.token_w1, w.token_b1, w.token_w2)
    launch(
        hidden_kernel, grid, *features, stats, sums, *layers, hidden, logits, tokens,
        settings=settings, **meta,
    )  # fmt: skip
    return hidden, logits


def _blend(
    features: Features, stats: Tensor, hidden: Tensor, logits: Tensor, w: SdfmWeights
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the token gate [B, N], the channel gate [B, C]."""
    f = features[0]
    batch, tokens, width = f.shape
    out = torch.empty_like(f)
    token = f.new_empty(batch, tokens, dtype=torch.float32)
    channel = f.new_empty(batch, width, dtype=torch.float32)
    settings = settings_of("blend", blend_settings(tokens), f)
    rows = settings.blocks["ROWS"] * settings.blocks["STEPS"]
    grid = (triton.cdiv(width, settings.blocks["CHANNELS"]), triton.cdiv(tokens, rows), batch)
    meta = _blend_meta(width, hidden.shape[1], logits.shape[1])
    layers = (hidden, w.channel_w2, w.channel_b2, logits, w.token_b2)
    launch(
        blend_kernel, grid, *features, stats, *layers, out, token, channel, tokens,
        settings=settings, **meta,
    )  # fmt: skip
    return out, token, channel


def _statistics_meta(width: int) -> dict[str, int | float]:
    return {"C": width, "EPS": NORM_EPS, "WIDTH": triton.next_power_of_2(width)}


def _blend_meta(width: int, units: int, chunks: int) -> dict[str, int | float]:
    return {"C": width, "H": units, "CHUNKS": chunks, "EPS": GATE_EPS}


_UNITS = 512


def specializations() -> list[Specialization]:
    """DINOv3 L's 201 and 1029 tokens in half precision, a width that is no power of two, and float32."""
    sizes = [("fp16", 1024, 1, 201), ("fp16", 1024, 8, 1029), ("fp16", 768, 8, 201)]
    sizes += [("fp32", 384, 8, 201)]
    forms = [form for size in sizes for form in _forms(*size)]
    return forms + triton_backward.specializations()


def _forms(dtype: str, width: int, batch: int, tokens: int) -> list[Specialization]:
    def form(kernel, settings: Settings, wide: str, meta) -> Specialization:
        name, main = f"{dtype} C={width} B={batch} N={tokens}", (width, batch) == (1024, 1)
        return specialization(name, dtype, kernel, settings, wide, meta, main)

    statistics, blend = statistics_settings(tokens), blend_settings(tokens)
    torch_dtype = torch.float32 if dtype == "fp32" else torch.float16
    hidden = hidden_settings(batch, tokens, _UNITS, torch_dtype)
    tiles = triton.cdiv(tokens, statistics.blocks["ROWS"] * statistics.blocks["STEPS"])
    sizes = {"C": width, "H": _UNITS, "TILES": tiles}
    meta = _blend_meta(width, _UNITS, triton.cdiv(_UNITS, hidden.blocks["UNITS"]))
    return [
        form(statistics_kernel, statistics, "STATS SUMS", _statistics_meta(width)),
        form(hidden_kernel, hidden, "STATS SUMS CHIDDEN LOGITS", sizes),
        form(blend_kernel, blend, "STATS CHIDDEN LOGITS TOKEN CHANNEL", meta),
    ]
