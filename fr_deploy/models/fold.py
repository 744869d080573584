"""Exact folds: constants of one-step restoration multiplied into the weights beside them.

Each function maps weights to weights and changes no output: `tests/test_models_fold.py` compares both sides in float64,
borders of the picture included. Compute in float64 and round once, when the folded weights are stored. Where a fold
would change the model (the encoder's posterior sampled instead of its mode, say), the docstring says so and the caller
must not use it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Affine(NamedTuple):
    """Weight and bias of a linear layer [O, I] or a convolution [O, I, kh, kw], and [O]."""

    weight: Tensor
    bias: Tensor


class StaticAttention(NamedTuple):
    """Cross-attention to fixed tokens: softmax over the tokens of each head of (x `keys`^T), times `values`, + bias."""

    keys: Tensor
    """[heads * tokens, C], the query projection and 1 / sqrt(d) in it."""
    values: Tensor
    """[heads * tokens, C], the output projection in it."""
    bias: Tensor
    """[C]"""


class SingleHead(NamedTuple):
    """Self-attention of one head as wide as its input: softmax(query(x) x^T) value(x)."""

    query: Affine
    value: Affine


def fold_time(conv_bias: Tensor, projection: Affine, embedding: Tensor) -> Tensor:
    """The time embedding of the one step, added after conv1 of a residual block, as part of conv1's bias [O].

    Args:
        conv_bias: [O].
        projection: `time_emb_proj`, [O, T].
        embedding: [T] or [1, T], the time MLP's output; SiLU stands between it and the projection.
    """
    return conv_bias + F.linear(F.silu(embedding.flatten()), *projection)


def fold_static_attention(
    to_q: Tensor, to_k: Tensor, to_v: Tensor, to_out: Affine, tokens: Tensor, heads: int
) -> StaticAttention:
    """Cross-attention to a fixed prompt: keys and values are constants, and take in the projections around them.

    x -> [.., heads * tokens] -> softmax -> [.., C]: two products in place of four. It pays while heads * tokens is not
    much above C: 77 tokens cost 0.97, 1.07 and 1.13 times the FLOPs at C = 320, 640 and 1280.

    Args:
        to_q: [C, C], to_k and to_v: [C, D], without biases, as in Stable Diffusion.
        to_out: [C, C].
        tokens: [T, D], the encoded prompt.
        heads: of width C / heads.
    """
    k, v = (F.linear(tokens, w).unflatten(1, (heads, -1)) for w in (to_k, to_v))
    query = to_q.unflatten(0, (heads, -1))
    keys = torch.einsum("thd,hdc->htc", k, query) * k.shape[-1] ** -0.5
    values = torch.einsum("thd,chd->htc", v, to_out.weight.unflatten(1, (heads, -1)))
    return StaticAttention(keys.flatten(0, 1), values.flatten(0, 1), to_out.bias)


def fold_scale_into_linear(scale: Tensor, shift: Tensor, linear: Affine) -> Affine:
    """A norm's weight and bias [I] into the linear layer [O, I] (or 1x1 convolution) that reads it."""
    weight = linear.weight.flatten(1)
    return Affine(
        (weight * scale).reshape(linear.weight.shape), linear.bias + F.linear(shift, weight)
    )


def fold_linears(first: Affine, second: Affine) -> Affine:
    """Two linear layers, one after the other, as one; after `first` [H, I] comes `second` [O, H]."""
    return Affine(second.weight @ first.weight, F.linear(first.bias, second.weight) + second.bias)


def fold_feed_forward(out: Affine, projection: Affine) -> Affine:
    """`proj_out(x + out(g))` as one linear layer on [x, g]: [O, C + H].

    Args:
        out: the feed-forward's last layer [C, H], whose result is added to the stream x.
        projection: the transformer's `proj_out` [O, C].
    """
    return Affine(
        torch.cat([projection.weight, projection.weight @ out.weight], 1),
        F.linear(out.bias, projection.weight) + projection.bias,
    )


def stack_linears(*layers: Affine) -> Affine:
    """Layers that read the same input, as one (query, key and value): [sum of O, I]."""
    return Affine(torch.cat([w for w, _ in layers]), torch.cat([b for _, b in layers]))


def fold_single_head(query: Affine, key: Affine, value: Affine, out: Affine) -> SingleHead:
    """Attention of one head (the VAE's middle block) with two projections in place of four.

    q k^T = (x Wq + bq)(x Wk + bk)^T: what depends on the query's row alone, bk's part, cancels in the softmax. Each row
    of the softmax sums to 1, so the value's bias goes through it into the output's. 1 / sqrt(C) is in the query.
    """
    scale = query.weight.shape[0] ** -0.5
    keyed = Affine(key.weight.mT @ query.weight * scale, query.bias @ key.weight * scale)
    return SingleHead(keyed, fold_linears(value, out))


def fold_quant(conv_out: Affine, quant: Affine, scaling: float) -> Affine:
    """The encoder's last convolution with `quant_conv`, the posterior's mode and the latent's scale in it.

    It is half as wide. Only where the mode is taken: a sampled latent needs the other half.

    Args:
        conv_out: [2C, I, 3, 3].
        quant: [2C, 2C, 1, 1].
        scaling: the VAE's scaling factor.
    """
    mean = quant.weight.flatten(1).chunk(2)[0] * scaling
    return Affine(
        torch.einsum("oc,cikl->oikl", mean, conv_out.weight),
        F.linear(conv_out.bias, mean) + quant.bias.chunk(2)[0] * scaling,
    )


def fold_one_step(
    conv_out: Affine, post_quant: Affine, alpha: float, sigma: float, scaling: float
) -> tuple[Affine, Tensor]:
    """x0 = (z - sigma eps) / alpha, the latent's scale and `post_quant_conv` in the UNet's last convolution.

    decoder input = conv(u) + residual z. The two nearly cancel at t = 999, so both must be summed in float32.

    Args:
        conv_out: the UNet's, [C, I, 3, 3]; its output is eps.
        post_quant: [C, C, 1, 1].
        alpha, sigma: of the one step.
        scaling: the VAE's scaling factor.

    Returns:
        The convolution, and the matrix [C, C] on the UNet's input z.
    """
    post = post_quant.weight.flatten(1) / (alpha * scaling)
    conv = Affine(
        -sigma * torch.einsum("oc,cikl->oikl", post, conv_out.weight),
        post_quant.bias - sigma * F.linear(conv_out.bias, post),
    )
    return conv, post


def fold_upsample(conv: Affine) -> Affine:
    """Nearest 2x upsampling and a 3x3 convolution as one 2x2 convolution of padding 1 and `phase_shuffle`.

    Each of the output's four phases sees 2x2 different pixels: 2.25 times fewer products, at H + 1 for H rows.

    Args:
        conv: [O, I, 3, 3], padding 1.

    Returns:
        [4 O, I, 2, 2], phase-major as `fr_kernels.phase_shuffle` reads it; its bias once a phase.
    """
    rows = [_merged(conv.weight, 2, phase) for phase in (0, 1)]
    phases = [_merged(row, 3, phase) for row in rows for phase in (0, 1)]
    return Affine(torch.cat(phases), conv.bias.repeat(4))


def fold_upsample_transposed(conv: Affine) -> Affine:
    """The same as one transposed 4x4 convolution of stride 2 and padding 1: no row of products is left over.

    `fold_upsample` computes (H + 1) (W + 1) positions: 27 % too many on 8x8 pixels, 1 % on 128x128.

    Args:
        conv: [O, I, 3, 3], padding 1.

    Returns:
        [I, O, 4, 4], as `torch.nn.functional.conv_transpose2d` reads it, and the bias.
    """
    taps = _interleaved(_interleaved(conv.weight, 2), 3)
    return Affine(taps.transpose(0, 1).contiguous(), conv.bias)


def phases_of_transposed(weight: Tensor) -> Tensor:
    """The weight of `fold_upsample` from that of `fold_upsample_transposed`: the same numbers, [I, O, 4, 4] -> [4 O, I, 2, 2]."""
    weight, taps = weight.transpose(0, 1), ([3, 1], [2, 0])  # of a phase, as `_interleaved` spread them
    return torch.cat([weight[:, :, rows][..., columns] for rows in taps for columns in taps])


def _interleaved(weight: Tensor, axis: int) -> Tensor:
    """The two phases' taps along an axis in the order in which a transposed convolution spreads them."""
    (a, bc), (ab, c) = (_merged(weight, axis, phase).unbind(axis) for phase in (0, 1))
    return torch.stack([c, bc, ab, a], axis)


def _merged(weight: Tensor, axis: int, phase: int) -> Tensor:
    """Three taps along an axis as two: those that fall on one pixel are summed."""
    a, b, c = weight.unbind(axis)
    return torch.stack([a, b + c] if phase == 0 else [a + b, c], axis)


def fold_pixels_in(conv: Affine) -> Affine:
    """The first convolution on bytes 0..255 in place of -1..1. Its padding must be 127.5: what 0 was before."""
    return Affine(conv.weight / 127.5, conv.bias - conv.weight.flatten(1).sum(1))


def fold_pixels_out(conv: Affine) -> Affine:
    """The last convolution with (x + 1) 127.5 in it: its output is rounded and clamped to 0..255, and done."""
    return Affine(conv.weight * 127.5, conv.bias * 127.5 + 127.5)


def fold_share(conv: Affine, share: float) -> Affine:
    """An adapter's last convolution with its share s in it (ours): z_aligned = (1 - s) z + conv(h)."""
    return Affine(conv.weight * share, conv.bias * share)


def fold_codebook(codebook: Tensor, conv: Affine) -> Tensor:
    """What a 1x1 convolution makes of each code: a table [K, O], so that the lookup gathers its output.

    Args:
        codebook: [K, D].
        conv: [O, D, 1, 1].
    """
    return F.linear(codebook, conv.weight.flatten(1), conv.bias)
