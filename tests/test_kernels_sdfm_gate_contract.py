"""sdfm_gate: the operator's contract, launches, FLOPs, strides, refusals."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from fr_kernels.sdfm_gate import reference, triton_backward, triton_impl
from fr_kernels.sdfm_gate.op import SdfmWeights, sdfm_gate
from kernel_checks import (
    DTYPES,
    check_operator,
    compiles_whole,
    launches,
)
from sdfm_cases import SIZES, arguments, op, shapes, with_gradients


def test_each_image_alone() -> None:
    given = arguments((3, 11, 24, 20), torch.float16)
    together = op(*given)
    for image in range(3):
        alone = op(given[0][image : image + 1], given[1][image : image + 1], *given[2:])
        assert torch.equal(alone[0], together[image])


def test_two_runs_give_the_same_bits() -> None:
    given = arguments((1, 17, 24, 20), torch.float16)
    for one, two in zip(with_gradients(op, given), with_gradients(op, given), strict=True):
        assert torch.equal(one, two)


def test_any_strides() -> None:
    given = [tensor.detach() for tensor in arguments((2, 5, 24, 20), torch.float32)]
    turned = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in given]
    assert not turned[0].is_contiguous()
    turned = [tensor.requires_grad_() for tensor in turned]
    plain = with_gradients(op, [tensor.requires_grad_() for tensor in given])
    for one, two in zip(with_gradients(op, turned), plain, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_empty_batch(impl: str) -> None:
    given = arguments((0, 3, 24, 20), torch.float32)
    out = op(*given, impl=impl)
    assert out.shape == (0, 3, 24)
    gradients = torch.autograd.grad(out.sum(), given)
    assert all(not gradient.any() for gradient in gradients)


def test_the_paper_size() -> None:
    """3,674,625 parameters (the public checkpoint), and no tensor of 3C columns kept for the backward."""
    with torch.device("meta"):
        weights = SdfmWeights(*(torch.empty(shape) for shape in shapes(1024, 512).values()))
        weights = SdfmWeights(*(tensor.requires_grad_() for tensor in weights))
        features = torch.empty(2, 1, 201, 1024)
    assert sum(tensor.numel() for tensor in weights) == 3_674_625
    kept: list[Tensor] = []
    counter = FlopCounterMode(display=False)
    with (
        counter,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        out = sdfm_gate(features[0], features[1], weights, impl="reference")
    token, channel = 201 * (3 * 1024 * 512 + 512), 3 * 1024 * 512 + 512 * 1024
    assert counter.get_total_flops() == 2 * (token + channel)
    extra = sum(t.numel() for t in kept) - sum(t.numel() for t in (*features, *weights))
    assert extra == 5 * 201 + 1024 + 512
    counter = FlopCounterMode(display=False)
    with counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * (3 * token + 2 * channel)


def test_operator_contract() -> None:
    for dtype in (*DTYPES, torch.bfloat16, torch.float64):
        f_sr, f_lr, *weights = arguments((2, 3, 8, 4), dtype)
        forward = torch.ops.fr_kernels.sdfm_gate
        check_operator(forward, f_sr, f_lr, weights, "reference")
    state = [tensor.detach() for tensor in forward(f_sr, f_lr, weights, "reference")[1:]]
    given = [tensor.detach() for tensor in (f_sr, f_sr, f_lr)]
    plain = [tensor.detach() for tensor in weights]
    backward = torch.ops.fr_kernels.sdfm_gate_backward
    check_operator(backward, *given, plain, state, "reference")
    out = compiles_whole(sdfm_gate, f_sr, f_lr, SdfmWeights(*weights))
    assert torch.equal(out, reference.sdfm_gate(f_sr, f_lr, SdfmWeights(*weights)))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_fake_promises_what_is_returned(impl: str) -> None:
    """Of tensors with any strides too, which opcheck does not give."""
    ops = torch.ops.fr_kernels
    given = [tensor.detach() for tensor in arguments((2, 5, 24, 20), torch.float16)]
    given = [tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for tensor in given]

    def results(f_sr: Tensor, f_lr: Tensor, *weights: Tensor) -> list[Tensor]:
        out, *state = ops.sdfm_gate(f_sr, f_lr, weights, impl)
        backward = ops.sdfm_gate_backward(f_sr, f_sr, f_lr, weights, state, impl)
        return [out, *state, *backward]

    fake = results(*(tensor.to("meta") for tensor in given))
    for one, two in zip(results(*given), fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (two.shape, two.dtype, two.stride())


@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_are_the_declared_ones(dtype: torch.dtype) -> None:
    f_sr, f_lr, *weights = (tensor.detach() for tensor in arguments(SIZES[0], dtype))
    made = launches(lambda: triton_impl.sdfm_gate(f_sr, f_lr, weights))
    assert len(made) == declared_launches("sdfm_gate", f_sr, f_lr, weights)
    _, state = triton_impl.sdfm_gate(f_sr, f_lr, weights)
    given = (f_sr, f_sr, f_lr, weights, state)
    made = launches(lambda: triton_backward.sdfm_gate_backward(*given))
    assert len(made) == declared_launches("sdfm_gate_backward", *given)


def test_autocast_changes_nothing() -> None:
    given = arguments(SIZES[0], torch.float32)
    plain = with_gradients(op, given)
    with torch.autocast("cpu", torch.bfloat16):
        under = with_gradients(op, given)
    for one, two in zip(plain, under, strict=True):
        assert torch.equal(one, two)


def test_wrong_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    f_sr, f_lr, *rest = (tensor.detach() for tensor in arguments(SIZES[0], torch.float32))
    weights = SdfmWeights(*rest)
    with pytest.raises(ValueError, match=r"f_sr is \(5, 32\); expected \[B, N, C\]"):
        sdfm_gate(f_sr[0], f_lr[0], weights)
    with pytest.raises(ValueError, match=r"f_sr is \(1, 0, 32\)"):
        sdfm_gate(f_sr[:, :0], f_lr[:, :0], weights)
    with pytest.raises(ValueError, match=r"f_lr is \(1, 4, 32\); expected f_sr's \(1, 5, 32\)"):
        sdfm_gate(f_sr, f_lr[:, :4], weights)
    with pytest.raises(ValueError, match=r"token_w1 is \(16, 95\); expected \(16, 96\)"):
        sdfm_gate(f_sr, f_lr, weights._replace(token_w1=weights.token_w1[:, 1:]))
    with pytest.raises(
        ValueError, match=r"token_b2 is torch\.float16; expected f_sr's torch\.float32"
    ):
        sdfm_gate(f_sr, f_lr, weights._replace(token_b2=weights.token_b2.half()))
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        sdfm_gate(f_sr, f_lr, weights, impl="cuda")
    double = SdfmWeights(*(tensor.double() for tensor in weights))
    with pytest.raises(KernelUnavailableError, match=r"do not compute in torch\.float64"):
        sdfm_gate(f_sr.double(), f_lr.double(), double, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        sdfm_gate(f_sr, f_lr, weights, impl="triton")
