"""Every fold equals what it replaces, in float64, borders included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_deploy.models import fold
from fr_deploy.models.fold import Affine
from fr_kernels import phase_shuffle

EXACT = 1e-14


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def affine(out: int, *rest: int) -> Affine:
    return Affine(drawn(out, *rest), drawn(out))


def assert_equal(folded: Tensor, plain: Tensor) -> None:
    """Relative to the largest value; `norm` alone would forgive a wrong border."""
    assert folded.shape == plain.shape
    assert (folded - plain).abs().max() <= EXACT * plain.abs().max()


def normed(x: Tensor) -> Tensor:
    return F.group_norm(x, 4, eps=1e-6)


def test_time() -> None:
    x, conv, projection, embedding = (
        drawn(2, 6, 5, 7),
        affine(8, 6, 3, 3),
        affine(8, 12),
        drawn(1, 12),
    )
    added = F.linear(F.silu(embedding), *projection)[..., None, None]
    plain = F.conv2d(x, *conv, padding=1) + added
    bias = fold.fold_time(conv.bias, projection, embedding)
    assert_equal(F.conv2d(x, conv.weight, bias, padding=1), plain)


def test_static_attention() -> None:
    x, tokens, heads = drawn(2, 15, 24), drawn(11, 10), 3
    to_q, to_k, to_v, to_out = drawn(24, 24), drawn(24, 10), drawn(24, 10), affine(24, 24)
    q, k, v = F.linear(x, to_q), F.linear(tokens, to_k)[None], F.linear(tokens, to_v)[None]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1))
    plain = F.linear(attended.transpose(1, 2).flatten(2), *to_out)
    keys, values, bias = fold.fold_static_attention(to_q, to_k, to_v, to_out, tokens, heads)
    weights = F.linear(x, keys).unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)
    assert_equal(weights @ values + bias, plain)


def test_norm_into_linear_and_convolution() -> None:
    x, scale, shift = drawn(2, 8, 5, 3), drawn(8), drawn(8)
    linear, conv = affine(9, 8), affine(9, 8, 1, 1)
    y = F.group_norm(x, 4, scale, shift, 1e-6)
    rows = normed(x).flatten(2).mT
    folded = F.linear(rows, *fold.fold_scale_into_linear(scale, shift, linear))
    assert_equal(folded, F.linear(y.flatten(2).mT, *linear))
    folded = F.conv2d(normed(x), *fold.fold_scale_into_linear(scale, shift, conv))
    assert_equal(folded, F.conv2d(y, *conv))


def test_feed_forward_and_projection() -> None:
    x, gated, out, projection = drawn(2, 7, 8), drawn(2, 7, 32), affine(8, 32), affine(8, 8)
    plain = F.linear(x + F.linear(gated, *out), *projection)
    folded = fold.fold_feed_forward(out, projection)
    assert_equal(F.linear(torch.cat([x, gated], -1), *folded), plain)


def test_stacked_projections() -> None:
    x, layers = drawn(2, 7, 8), [affine(8, 8) for _ in range(3)]
    folded = F.linear(x, *fold.stack_linears(*layers))
    assert_equal(folded, torch.cat([F.linear(x, *layer) for layer in layers], -1))


def test_single_head() -> None:
    x, (q, k, v, out) = drawn(2, 30, 16), (affine(16, 16) for _ in range(4))
    q = Affine(q.weight / 8, q.bias)  # scores of about 1: a softmax that is not one-hot
    a, b, c = (F.linear(x, *layer)[:, None] for layer in (q, k, v))
    plain = F.linear(F.scaled_dot_product_attention(a, b, c)[:, 0], *out)
    query, value = fold.fold_single_head(q, k, v, out)
    weights = (F.linear(x, *query) @ x.mT).softmax(-1)
    assert_equal(weights @ F.linear(x, *value), plain)


def test_quant() -> None:
    x, conv, quant, scaling = drawn(2, 8, 6, 5), affine(8, 8, 3, 3), affine(8, 8, 1, 1), 0.18215
    mean, _ = F.conv2d(F.conv2d(x, *conv, padding=1), *quant).chunk(2, 1)
    folded = fold.fold_quant(conv, quant, scaling)
    assert_equal(F.conv2d(x, *folded, padding=1), mean * scaling)


def test_one_step() -> None:
    u, z, conv, post = drawn(2, 8, 6, 5), drawn(2, 4, 6, 5), affine(4, 8, 3, 3), affine(4, 4, 1, 1)
    decoder = affine(8, 4, 3, 3)
    for alpha, sigma in ((0.06826, 0.99767), (0.65275, 0.75757)):
        x0 = (z - sigma * F.conv2d(u, *conv, padding=1)) / alpha
        plain = F.conv2d(F.conv2d(x0 / 0.18215, *post), *decoder, padding=1)
        folded, residual = fold.fold_one_step(conv, post, alpha, sigma, 0.18215)
        made = F.conv2d(u, *folded, padding=1) + F.conv2d(z, residual[..., None, None])
        assert_equal(F.conv2d(made, *decoder, padding=1), plain)


def test_upsample() -> None:
    for height, width in ((7, 9), (1, 1), (2, 1)):
        x, conv = drawn(2, 6, height, width), affine(5, 6, 3, 3)
        plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), *conv, padding=1)
        folded = F.conv2d(x, *fold.fold_upsample(conv), padding=1)
        assert_equal(phase_shuffle(folded), plain)
        folded = F.conv_transpose2d(x, *fold.fold_upsample_transposed(conv), stride=2, padding=1)
        assert_equal(folded, plain)


def test_pixels_in() -> None:
    image, conv = torch.randint(0, 256, (2, 3, 6, 5)).double(), affine(8, 3, 3, 3)
    plain = F.conv2d(image / 127.5 - 1, *conv, padding=1)
    padded = F.pad(image, (1, 1, 1, 1), value=127.5)
    assert_equal(F.conv2d(padded, *fold.fold_pixels_in(conv)), plain)


def test_pixels_out() -> None:
    h, conv = drawn(2, 8, 6, 5), affine(3, 8, 3, 3)
    plain = (F.conv2d(h, *conv, padding=1) + 1) * 127.5
    assert_equal(F.conv2d(h, *fold.fold_pixels_out(conv), padding=1), plain)


def test_share() -> None:
    h, z, conv = drawn(2, 8, 6, 5), drawn(2, 4, 6, 5), affine(4, 8, 3, 3)
    plain = torch.lerp(z, F.conv2d(h, *conv, padding=1), 0.3)
    folded = F.conv2d(h, *fold.fold_share(conv, 0.3), padding=1)
    assert_equal(0.7 * z + folded, plain)


def test_codebook() -> None:
    codebook, conv, index = drawn(16, 6), affine(8, 6, 1, 1), torch.randint(0, 16, (2, 5, 4))
    plain = F.conv2d(codebook[index].permute(0, 3, 1, 2), *conv)
    assert_equal(fold.fold_codebook(codebook, conv)[index].permute(0, 3, 1, 2), plain)
