"""upsample_conv: values and gradients against float64, beside torch's own operators in the same dtype; the contract."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fr_deploy.models.fold import (
    Affine,
    fold_upsample,
    fold_upsample_transposed,
    phases_of_transposed,
)
from fr_kernels import (
    native,
    pack_upsample_conv,
    phase_shuffle,
    upsample_conv,
    upsample_conv_on_cpu,
    winograd,
)
from fr_kernels.dispatch import declared_launches
from fr_kernels.upsample_conv import reference
from kernel_checks import (
    NO_COMPILER,
    WITHOUT_DOT,
    all_within_budget,
    check_operator,
    compiles_whole,
    launches,
    poisoned,
    results,
    strided,
)

needs_compiler = pytest.mark.skipif(bool(native.obstacle("upsample_conv")), reason=NO_COMPILER)
# [batch, inputs, height, width], outputs: whole tiles and parts of them, vectors and their ends.
SHAPES = [
    ((1, 64, 32, 32), 64),
    ((2, 50, 13, 9), 5),
    ((3, 3, 8, 17), 21),
    ((1, 128, 20, 20), 130),
    ((9, 33, 1, 1), 17),
    ((1, 48, 1, 6), 16),
]


def data(shape: tuple[int, ...], outputs: int, mean: float = 0.0) -> list[Tensor]:
    """x, weight, bias."""
    torch.manual_seed(0)
    weight = torch.randn(4 * outputs, shape[1], 2, 2) / (4 * shape[1]) ** 0.5
    return [torch.randn(shape) + mean, weight, torch.randn(outputs)]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return phase_shuffle(F.conv2d(x, weight, bias.repeat(4), padding=1))


def ours(impl: str) -> object:
    return lambda *inputs: upsample_conv(*inputs, impl=impl)


@needs_compiler
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_winograd_is_as_exact_as_direct_sums(
    shape: tuple[int, ...], outputs: int, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = data(shape, outputs, mean)
    with poisoned(monkeypatch):
        got = results(ours("cpu"), inputs)
    all_within_budget(got, plain, inputs)


@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_the_reference_and_its_gradients(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in data((2, 5, 7, 6), 3)]
    all_within_budget(results(ours("reference"), inputs), plain, inputs)


@pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_compiler)])
def test_it_is_upsampling_and_a_convolution(impl: str) -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(2, 24, 9, 7), torch.randn(20, 24, 3, 3) / 15
    bias = torch.randn(20)
    folded = fold_upsample(Affine(conv.double(), bias.double())).weight
    wide = F.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    exact = F.conv2d(wide, conv.double(), bias.double(), padding=1)
    got = upsample_conv(x, folded.float(), bias, impl=impl)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=3e-6)


@needs_compiler
@pytest.mark.parametrize("channels", [64, 512])
def test_the_mean_error_is_below_the_direct_one(channels: int) -> None:
    """Of root mean squares; on a Zen 3 0.40 of it with 64 channels, 0.17 with 512; with AVX-512 0.97, 0.85."""
    x, weight, bias = data((1, channels, 32, 32), 64)
    exact = plain(x.double(), weight.double(), bias.double())
    mine, eager = (
        (y.double() - exact).square().mean().sqrt()
        for y in (upsample_conv(x, weight, bias, impl="cpu"), plain(x, weight, bias))
    )
    assert mine < eager


def test_the_transposed_form_holds_the_same_numbers() -> None:
    torch.manual_seed(0)
    conv = Affine(torch.randn(6, 5, 3, 3), torch.randn(6))
    phases = phases_of_transposed(fold_upsample_transposed(conv).weight)
    assert torch.equal(phases, fold_upsample(conv).weight)


@needs_compiler
def test_neither_batch_nor_threads_nor_packing_nor_blocks_change_a_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias = data((5, 56, 20, 12), 24)
    expected = upsample_conv(x, weight, bias, impl="cpu")
    packed = pack_upsample_conv(weight)
    assert torch.equal(upsample_conv(x, weight, bias, packed=packed, impl="cpu"), expected)
    for at in range(5):
        alone = upsample_conv(x[at : at + 1], weight, bias, impl="cpu")
        assert torch.equal(alone[0], expected[at])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(upsample_conv(x, weight, bias, impl="cpu"), expected)
    finally:
        torch.set_num_threads(threads)
    for most in (1, 3, 12):
        monkeypatch.setattr(winograd, "PANELS", most)
        assert torch.equal(upsample_conv(x, weight, bias, impl="cpu"), expected)


@needs_compiler
def test_strides_do_not_matter() -> None:
    inputs = data((2, 48, 10, 7), 9)
    expected = upsample_conv(*inputs, impl="cpu")
    for changed in (
        [strided(t) for t in inputs],
        [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs],
    ):
        assert torch.equal(upsample_conv(*changed, impl="cpu"), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)


@needs_compiler
def test_what_is_not_finite_spoils_only_its_tiles() -> None:
    x, weight, bias = data((1, 48, 24, 24), 8)
    clean = upsample_conv(x, weight, bias, impl="cpu")
    x[0, 2, 1, 1] = float("nan")
    got = upsample_conv(x, weight, bias, impl="cpu")
    assert got[:, :, 1:5, 1:5].isnan().all()
    assert torch.equal(got[:, :, 12:, 12:], clean[:, :, 12:, 12:])


@needs_compiler
def test_auto_takes_what_gains() -> None:
    def chosen(
        channels: int, side: int, dtype: torch.dtype = torch.float32, outputs: int = 64
    ) -> bool:
        return upsample_conv_on_cpu(torch.zeros(1, channels, side, side, dtype=dtype), outputs)

    assert chosen(16, 8)
    assert chosen(512, 8, outputs=512)
    assert not chosen(512, 8, outputs=513), "as much memory again"
    assert not chosen(15, 8), "few channels"
    assert not chosen(64, 8, outputs=15), "few channels"
    assert not chosen(64, 7), "few pixels"
    assert not chosen(64, 8, torch.bfloat16)
    assert not upsample_conv_on_cpu(torch.zeros(1, 64, 8, 8, device="meta"), 64)


@pytest.mark.parametrize("impl", ["reference", pytest.param("cpu", marks=needs_compiler)])
def test_empty_batch(impl: str) -> None:
    inputs = data((0, 48, 6, 5), 4)
    got = results(ours(impl), inputs)
    assert [t.shape for t in got] == [(0, 4, 12, 10), *(t.shape for t in inputs)]
    assert not any(t.any() for t in got)


def test_operator_contract() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        x, weight, bias = (t.to(dtype).requires_grad_() for t in data((2, 3, 6, 5), 4))
        op = torch.ops.fr_kernels.upsample_conv.default
        check_operator(op, x, weight, bias, None, "reference")
        check_operator(op, x, weight, None, None, "reference")


def test_gradcheck() -> None:
    leaves = [t.double().requires_grad_() for t in data((2, 3, 4, 5), 2)]
    assert torch.autograd.gradcheck(ours("reference"), leaves)


@needs_compiler
def test_a_packed_weight_of_another_shape_is_refused() -> None:
    x, weight, _ = data((1, 48, 6, 5), 40)
    for wrong in (pack_upsample_conv(weight[:12]), pack_upsample_conv(weight)[:, :, :1]):
        with pytest.raises(ValueError, match=r"packed is .*; expected contiguous \(4, 16, "):
            upsample_conv(x, weight, packed=wrong, impl="cpu")


def test_it_compiles_whole() -> None:
    inputs = data((2, 5, 6, 7), 4)
    got = compiles_whole(lambda *given: upsample_conv(*given).sin(), *inputs)
    assert torch.equal(got, upsample_conv(*inputs).sin())


def test_launches_are_those_declared() -> None:
    """On a GPU it is torch's own: cuDNN's convolution, its bias, and a copy for each phase."""
    x, weight, bias = data((1, 3, 6, 5), 4)
    # One more with a bias: a GPU's convolution adds it in a launch of its own.
    made = launches(lambda: reference.upsample_conv(x, weight, bias))
    assert declared_launches("upsample_conv", x, weight, bias) == len(made) + 1, made
    bare = launches(lambda: reference.upsample_conv(x, weight, None))
    assert declared_launches("upsample_conv", x, weight, None) == len(bare), bare


def test_wrong_calls() -> None:
    x, weight, bias = data((1, 4, 6, 5), 3)
    with pytest.raises(ValueError, match=r"expected \[4 O, 4, 2, 2\]"):
        upsample_conv(x, weight[:, :3])
    with pytest.raises(ValueError, match=r"expected \[4 O, 4, 2, 2\]"):
        upsample_conv(x, weight[:3])
    with pytest.raises(ValueError, match=r"expected floating point \[B, C, H, W\]"):
        upsample_conv(x[0], weight)
    with pytest.raises(ValueError, match=r"bias is \(2,\) torch.float32; expected \[3\]"):
        upsample_conv(x, weight, bias[:2])
