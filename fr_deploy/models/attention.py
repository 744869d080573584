"""Attention layers of the restoration graph, their norms, projections and constants folded."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.attend import WIDEST, Kind, attend
from fr_deploy.models.fold import (
    Affine,
    fold_feed_forward,
    fold_scale_into_linear,
    fold_single_head,
    fold_static_attention,
    stack_linears,
)
from fr_deploy.models.layers import Block, Layer, Norm, Stream, store
from fr_deploy.models.weights import Weights
from fr_kernels import geglu, layer_norm

LAYER_NORM_EPS = 1e-5
GROUP_NORM_EPS = 1e-6


def tokens_of(picture: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]; a view of channels_last memory."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def picture_of(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H * W, C] -> [B, C, H, W], channels_last."""
    return tokens.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


class Attends(Layer):
    """A layer with attention: who computes it is set for a whole graph by `use_attention`."""

    kind: Kind = "sdpa"
    width: int
    """Channels a head."""


def use_attention(module: nn.Module, kind: Kind, wide: Kind) -> None:
    """Choose who computes attention below `module`; `wide` where a head has more channels than flash kernels take."""
    for layer in module.modules():
        if isinstance(layer, Attends):
            layer.kind = kind if layer.width <= WIDEST else wide


class SingleHeadAttention(Block, Attends):
    """The VAE's middle attention: one head, two projections (`fold_single_head`)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.width = channels
        self.norm = Norm(channels, groups, GROUP_NORM_EPS, silu=False)
        self.query, self.value = (nn.Linear(channels, channels) for _ in range(2))

    def fold(self, w: Weights) -> None:
        """From a diffusers `Attention` with one head."""
        self.norm.fold(w, "group_norm")
        projections = (w.affine(name) for name in ("to_q", "to_k", "to_v", "to_out.0"))
        query, value = fold_single_head(*projections)
        store(self.query, query)
        store(self.value, value)

    def forward(self, stream: Stream) -> tuple[Stream, Tensor]:
        """The layer's output, and its settled input."""
        y, h = self.norm(stream)
        x = tokens_of(y)
        q, k, v = (t[:, None] for t in (self.query(x), x, self.value(x)))
        out = attend(q, k, v, self.kind, 1.0)[:, 0]
        return Stream(picture_of(out, h), h), h


class SelfAttention(Attends):
    """Multi-head self-attention of tokens; LayerNorm's weights are in the one product for query, key and value."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def fold(self, w: Weights, norm: Affine) -> None:
        """From a diffusers `Attention` and the LayerNorm before it."""
        qkv = stack_linears(*(w.unbiased(name) for name in ("to_q", "to_k", "to_v")))
        store(self.qkv, fold_scale_into_linear(*norm, qkv))
        store(self.out, w.affine("to_out.0"))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] normalised tokens -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, self.kind)
        return self.out(out.transpose(1, 2).flatten(2))


class PromptAttention(Attends):
    """Cross-attention to the fixed prompt, whose keys and values are constants.

    Where it takes fewer FLOPs (heads * tokens <= C + tokens: 64x64 positions of Stable Diffusion), the projections
    of query and output are in the constants, too (`fold_static_attention`).
    """

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.merged = heads * tokens <= channels + tokens
        rows = heads * tokens if self.merged else tokens
        self.keys, self.values = (nn.Parameter(torch.empty(rows, channels)) for _ in range(2))
        self.key_bias = nn.Parameter(torch.empty(rows)) if self.merged else None
        self.query = None if self.merged else nn.Linear(channels, channels)
        self.out = None if self.merged else nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.empty(channels)) if self.merged else None

    def fold(self, w: Weights, norm: Affine, prompt: Tensor) -> None:
        """From a diffusers `Attention`, the LayerNorm before it and the prompt [T, D]."""
        to_q, to_k, to_v = (w[f"{name}.weight"] for name in ("to_q", "to_k", "to_v"))
        to_out = w.affine("to_out.0")
        with torch.no_grad():
            if self.query is None or self.out is None:
                assert self.bias is not None
                assert self.key_bias is not None
                given = (to_q, to_k, to_v, to_out, prompt, self.heads)
                keys, values, bias = fold_static_attention(*given)
                folded = fold_scale_into_linear(*norm, Affine(keys, keys.new_zeros(len(keys))))
                self.keys.copy_(folded.weight)
                self.key_bias.copy_(folded.bias)
                self.values.copy_(values)
                self.bias.copy_(bias)
                return
            self.keys.copy_(F.linear(prompt, to_k))
            self.values.copy_(F.linear(prompt, to_v))
        store(self.query, fold_scale_into_linear(*norm, w.unbiased("to_q")))
        store(self.out, to_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] normalised tokens -> the same shape."""
        if self.query is None or self.out is None:
            assert self.bias is not None
            scores = F.linear(x, self.keys, self.key_bias).unflatten(-1, (self.heads, -1))
            return F.linear(scores.softmax(-1).flatten(-2), self.values.mT, self.bias)
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1) for t in (self.keys, self.values))
        k, v = (t.expand(x.shape[0], -1, -1, -1) for t in (k, v))
        return self.out(attend(q, k, v, self.kind).transpose(1, 2).flatten(2))


class Transformer(Block):
    """The UNet's transformer: self-attention, cross-attention to the prompt, GEGLU, and the projections around them."""

    def __init__(self, channels: int, heads: int, tokens: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups, GROUP_NORM_EPS, silu=False)
        self.proj_in = nn.Linear(channels, channels)
        self.attention = SelfAttention(channels, heads)
        self.prompt = PromptAttention(channels, heads, tokens)
        self.gate = nn.Linear(channels, 8 * channels)
        self.proj_out = nn.Linear(channels, channels)
        self.feed = nn.Parameter(torch.empty(channels, 4 * channels))

    def fold(self, w: Weights, prompt: Tensor) -> None:
        """From a diffusers `Transformer2DModel` of one block with linear projections.

        Args:
            w: its weights.
            prompt: [T, D].
        """
        self.norm.fold(w, "norm")
        store(self.proj_in, w.affine("proj_in"))
        block = w / "transformer_blocks.0"
        self.attention.fold(block / "attn1", block.affine("norm1"))
        self.prompt.fold(block / "attn2", block.affine("norm2"), prompt)
        gate = fold_scale_into_linear(*block.affine("norm3"), block.affine("ff.net.0.proj"))
        store(self.gate, gate)
        both = fold_feed_forward(block.affine("ff.net.2"), w.affine("proj_out"))
        channels = len(both.weight)
        store(self.proj_out, Affine(both.weight[:, :channels], both.bias))
        with torch.no_grad():
            self.feed.copy_(both.weight[:, channels:])

    def forward(self, stream: Stream) -> tuple[Stream, Tensor]:
        """The layer's output, and its settled input."""
        y, h = self.norm(stream)
        normed, x = self._normed(self.proj_in(tokens_of(y)))
        normed, x = self._normed(self.attention(normed), x)
        normed, x = self._normed(self.prompt(normed), x)
        gated = self._gated(self.gate(normed)).flatten(0, 1)
        # Two products that add up, not one on [x, gated]: the same FLOPs without writing the two side by side.
        out = torch.addmm(self.proj_out(x).flatten(0, 1), gated, self.feed.mT).view_as(x)
        return Stream(picture_of(out, h), h), h

    def _normed(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum, normalised, and the sum."""
        if self.kernels:
            return layer_norm(x, residual=residual, eps=LAYER_NORM_EPS)
        h = x if residual is None else x + residual
        return F.layer_norm(h, h.shape[-1:], eps=LAYER_NORM_EPS), h

    def _gated(self, x: Tensor) -> Tensor:
        if self.kernels:
            return geglu(x)
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)
