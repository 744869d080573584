"""phase_shuffle: a gather, so every implementation must agree bit for bit."""

import pytest
import torch
import torch.nn.functional as F

from fr_kernels import phase_shuffle
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.phase_shuffle import reference, triton_impl
from kernel_checks import DTYPES, WITHOUT_DOT, check_operator, compiles_whole, launches, poisoned

SHAPES = [(1, 4, 2, 2), (2, 12, 4, 3), (1, 64, 9, 6), (3, 20, 2, 8)]


@pytest.mark.oldest
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", WITHOUT_DOT)
def test_triton_equals_the_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.randn(shape).to(dtype)
    for given in (y, y.to(memory_format=torch.channels_last)):
        with poisoned(monkeypatch):
            out = phase_shuffle(given, impl="triton")
        assert torch.equal(out, reference.phase_shuffle(given))
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.oldest
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_gradient_is_autograds(
    shape: tuple[int, int, int, int], impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.randn(shape, requires_grad=True)
    with poisoned(monkeypatch):
        out = phase_shuffle(y, impl=impl)
        grad = torch.randn(out.shape)
        (got,) = torch.autograd.grad(out, y, grad)
    phases = [
        y[:, k * out.shape[1] : (k + 1) * out.shape[1]][
            :, :, py : py + out.shape[2] // 2, px : px + out.shape[3] // 2
        ]
        for k, (py, px) in enumerate(reference.PHASES)
    ]
    plain = F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), 2)
    assert torch.equal(out, plain)
    (expected,) = torch.autograd.grad(plain, y, grad)
    assert torch.equal(got, expected)


def test_it_undoes_the_upsample_fold() -> None:
    """nearest 2x, then a 3x3 convolution = one 2x2 convolution of four times the channels, then the shuffle."""
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    w, b = torch.randn(6, 8, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, b, padding=1)

    def squeeze(w: torch.Tensor, axis: int, phase: int) -> torch.Tensor:
        first, second, third = w.unbind(axis)
        pair = (first, second + third) if phase == 0 else (first + second, third)
        return torch.stack(pair, axis)

    folded = torch.cat([squeeze(squeeze(w, 2, py), 3, px) for py, px in reference.PHASES])
    out = phase_shuffle(F.conv2d(x, folded, b.repeat(4), padding=1))
    assert (out - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_operator_contract() -> None:
    for dtype in (*DTYPES, torch.bfloat16, torch.float64):
        y = torch.randn(2, 8, 3, 4).to(dtype).requires_grad_()
        check_operator(torch.ops.fr_kernels.phase_shuffle, y, "reference")
    out = compiles_whole(phase_shuffle, y)
    assert torch.equal(out, reference.phase_shuffle(y))


def test_launches_are_the_declared_ones() -> None:
    y = torch.randn(1, 8, 3, 3).to(memory_format=torch.channels_last)
    made = launches(lambda: triton_impl.phase_shuffle(y))
    assert len(made) == declared_launches("phase_shuffle", y)
    grad = torch.randn(1, 2, 4, 4).to(memory_format=torch.channels_last)
    made = launches(lambda: triton_impl.phase_shuffle_backward(grad))
    assert len(made) == declared_launches("phase_shuffle_backward", grad)


def test_empty_batch_and_wrong_calls() -> None:
    assert phase_shuffle(torch.zeros(0, 4, 3, 3), impl="triton").shape == (0, 1, 4, 4)
    with pytest.raises(ValueError, match="4C"):
        phase_shuffle(torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        phase_shuffle(torch.zeros(1, 4, 3, 3), impl="cuda")


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        phase_shuffle(torch.zeros(1, 4, 3, 3), impl="triton")
