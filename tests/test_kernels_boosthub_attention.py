"""boosthub_attention: forward and all seven gradients against float64, and what a caller may rely on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fr_kernels.boosthub_attention import reference, triton_impl
from fr_kernels.boosthub_attention.op import boosthub_attention
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from kernel_checks import DTYPES, check_operator, compiles_whole, launches, poisoned, within_budget

# batch, L, S, S_hub, heads, head width: every width that is documented, tiles that fit and tiles that do not,
# equal and different lengths. One key is not here: eager's dq and dk are then 0 exactly, a budget of nothing.
CASES = [
    (2, 70, 33, 100, 2, 40),
    (1, 64, 64, 64, 2, 64),
    (1, 130, 96, 96, 1, 32),
    (1, 33, 3, 5, 2, 80),
    (1, 16, 40, 40, 1, 128),
]
Case = tuple[int, int, int, int, int, int]
Function = Callable[..., Tensor]


def problem(case: Case, dtype: torch.dtype, phi: float = 0.7) -> tuple[list[Tensor], Tensor]:
    """q, k, v, q_hub, k_hub, v_hub, phi and a gradient to the output; means that are not zero, so that sums grow."""
    batch, rows, keys, keys_hub, heads, width = case
    torch.manual_seed(0)
    lengths = (rows, keys, keys, rows, keys_hub, keys_hub)
    shapes = [(batch, length, heads, width) for length in lengths]
    tensors = [torch.randn(shape).add(0.5).to(dtype) for shape in shapes]
    grad = torch.randn(batch, rows, 2, heads, width).add(0.5).to(dtype)
    return [*tensors, torch.tensor(phi, dtype=torch.promote_types(dtype, torch.float32))], grad


def eager(
    q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor, v2: Tensor, phi: Tensor
) -> Tensor:
    """The obvious code, everything in the tensors' dtype."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
        return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)

    return torch.stack((attend(q, k, v), phi * attend(q2, k2, v2)), 2)


def triton(*tensors: Tensor) -> Tensor:
    return boosthub_attention(*tensors, impl="triton")


def with_gradients(function: Function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the gradients to all seven arguments."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check_against_eager(
    tensors: list[Tensor], grad: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with poisoned(monkeypatch):
        got = with_gradients(triton, tensors, grad)
    peers = with_gradients(eager, tensors, grad)
    exact = with_gradients(eager, [t.double() for t in tensors], grad.double())
    for one, peer, truth in zip(got, peers, exact, strict=True):
        within_budget(one, peer, truth)


@pytest.mark.oldest
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_eager(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    check_against_eager(*problem(case, dtype), monkeypatch)


@pytest.mark.oldest
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of tile rows that are never stored
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_far_from_zero(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-attention's softmaxes are all but one-hot; the hub's scores lie near -500: exp(0 + 500) is infinite."""
    tensors, grad = problem((1, 40, 37, 37, 1, 32), dtype)
    q, k, v, q_hub, k_hub, v_hub, phi = tensors
    q, q_hub, k_hub = q * 30, q_hub * 0.1 + 10, k_hub * 0.1 - 9
    check_against_eager([q, k, v, q_hub, k_hub, v_hub, phi], grad, monkeypatch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_key(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is the value, whatever the score; dq and dk vanish up to the rounding of two equal products."""
    tensors, grad = problem((1, 33, 1, 1, 2, 16), dtype, phi=1.0)
    with poisoned(monkeypatch):
        out, *gradients = with_gradients(triton, tensors, grad)
    values = torch.stack((tensors[2], tensors[5]), 2)
    assert torch.equal(out, values.expand_as(out))
    products = (grad.double() * values.double()).abs().sum(-1).max()
    band = torch.finfo(dtype).eps * products * 16**-0.5
    for at, factor in ((0, 1), (3, 4)):
        assert gradients[at].abs().max() <= band * tensors[factor].abs().max()
    for at, factor in ((1, 0), (4, 3)):
        assert gradients[at].abs().max() <= band * tensors[factor].abs().sum(1).max()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_phi_zero_keeps_its_gradient(impl: str) -> None:
    tensors, grad = problem((1, 20, 20, 20, 2, 16), torch.float32, phi=0.0)

    def function(*tensors: Tensor) -> Tensor:
        return boosthub_attention(*tensors, impl=impl)

    out, *gradients = with_gradients(function, tensors, grad)
    assert not out[:, :, 1].any()
    assert all(not gradient.any() for gradient in gradients[3:6])
    peer = with_gradients(eager, tensors, grad)[-1]
    exact = with_gradients(eager, [t.double() for t in tensors], grad.double())[-1]
    assert exact.abs() > 1
    within_budget(gradients[-1], peer, exact)


def test_two_runs_are_equal() -> None:
    tensors, grad = problem((2, 70, 33, 33, 1, 16), torch.float16)
    first, second = (with_gradients(triton, tensors, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def spread(tensors: list[Tensor]) -> dict[str, list[Tensor]]:
    """The same values in other memory."""
    own = torch.stack((tensors[0], tensors[1], tensors[2], tensors[3]), 2)
    hub = torch.stack((tensors[4], tensors[5]), 2)
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:6]]
    columns = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in tensors[:6]]
    return {
        "stacked projections": [*own.unbind(2), *hub.unbind(2)],
        "heads before rows": heads_first,
        "last dimension not contiguous": columns,
    }


def test_strides_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad = problem((2, 40, 40, 40, 3, 24), torch.float16)
    expected = with_gradients(triton, tensors, grad)
    for name, others in spread(tensors).items():
        assert not all(t.is_contiguous() for t in others)
        other_grad = grad.transpose(1, 3).contiguous().transpose(1, 3)
        with poisoned(monkeypatch):
            got = with_gradients(triton, [*others, tensors[-1]], other_grad)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name


def test_one_image_of_keys_for_the_whole_batch() -> None:
    tensors, grad = problem((2, 24, 20, 20, 1, 16), torch.float32)
    tensors[4:6] = [t[:1].expand(2, -1, -1, -1) for t in tensors[4:6]]
    got = with_gradients(triton, tensors, grad)
    copied = with_gradients(triton, [t.contiguous() for t in tensors], grad)
    assert all(torch.equal(a, b) for a, b in zip(got, copied, strict=True))


def test_the_reference_is_two_attentions() -> None:
    tensors, _ = problem((2, 9, 5, 7, 3, 6), torch.float64)
    heads = [t.transpose(1, 2) for t in tensors[:6]]
    own = F.scaled_dot_product_attention(*heads[:3]).transpose(1, 2)
    hub = F.scaled_dot_product_attention(*heads[3:]).transpose(1, 2)
    out = boosthub_attention(*tensors)
    expected = torch.stack((own, 0.7 * hub), 2)
    assert (out - expected).abs().max() <= 1e-14 * expected.abs().max()
    # Equation 5 is one matrix product over both halves.
    w_sa, w_o = torch.randn(18, 18).double(), torch.randn(18, 18).double()
    joint = F.linear(own.flatten(2), w_sa) + 0.7 * F.linear(hub.flatten(2), w_o)
    merged = F.linear(out.flatten(2), torch.cat((w_sa, w_o), 1))
    assert (merged - joint).abs().max() <= 1e-13 * joint.abs().max()


def test_gradients_of_the_reference() -> None:
    tensors, _ = problem((1, 3, 2, 4, 2, 3), torch.float64)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: reference.boosthub_attention(*t)[0], leaves)
    assert torch.autograd.gradcheck(boosthub_attention, leaves)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float64], ids=str)
def test_operator_contract(dtype: torch.dtype) -> None:
    tensors, grad = problem((1, 3, 2, 4, 2, 6), dtype)
    operator = torch.ops.fr_kernels.boosthub_attention
    check_operator(operator, *tensors, False, "reference")
    leaves = [t.requires_grad_() for t in tensors]
    check_operator(operator, *leaves, True, "reference")
    out = compiles_whole(boosthub_attention, *leaves)
    assert torch.equal(out, boosthub_attention(*leaves))
    whole = torch.autograd.grad(out, leaves, grad)
    plain = torch.autograd.grad(boosthub_attention(*leaves), leaves, grad)
    assert all(torch.equal(a, b) for a, b in zip(whole, plain, strict=True))


def test_nothing_is_kept_without_a_gradient() -> None:
    tensors, _ = problem((1, 20, 20, 20, 1, 16), torch.float16)
    operator = torch.ops.fr_kernels.boosthub_attention
    for impl in ("reference", "triton"):
        out, *kept = operator(*tensors, False, impl)
        assert torch.equal(out, operator(*tensors, True, impl)[0])
        assert [t.numel() for t in kept] == [0, 0]
    out = operator(tensors[0].requires_grad_(), *tensors[1:], False, "reference")[0]
    with pytest.raises(RuntimeError, match="keep=False"):
        out.sum().backward()


def test_launches_are_the_declared_ones() -> None:
    tensors, grad = problem((1, 20, 20, 20, 1, 16), torch.float16)
    kept = triton_impl.boosthub_attention(*tensors, True)
    for keep in (False, True):
        made = launches(lambda keep=keep: triton_impl.boosthub_attention(*tensors, keep))
        assert len(made) == declared_launches("boosthub_attention", *tensors)
    made = launches(lambda: triton_impl.boosthub_attention_backward(grad, *tensors, *kept))
    assert len(made) == declared_launches("boosthub_attention_backward", grad, *tensors)


def test_flops_are_those_of_the_products() -> None:
    tensors, grad = problem((2, 10, 20, 30, 3, 8), torch.float32)
    leaves = [t.requires_grad_() for t in tensors]
    with FlopCounterMode(display=False) as forward:
        out = boosthub_attention(*leaves)
    assert forward.get_total_flops() == 4 * 2 * 3 * 10 * (20 + 30) * 8
    with FlopCounterMode(display=False) as backward:
        out.backward(grad)
    assert backward.get_total_flops() == 10 * 2 * 3 * 10 * (20 + 30) * 8


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(("batch", "rows"), [(0, 8), (1, 0)])
def test_empty(batch: int, rows: int, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad = problem((batch, rows, 5, 6, 1, 16), torch.float32)

    def function(*tensors: Tensor) -> Tensor:
        return boosthub_attention(*tensors, impl=impl)

    with poisoned(monkeypatch):
        out, *gradients = with_gradients(function, tensors, grad)
    assert out.shape == (batch, rows, 2, 1, 16)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_wrong_calls() -> None:
    good, _ = problem((1, 4, 5, 6, 2, 8), torch.float32)

    def call(at: int, tensor: Tensor, **arguments: Any) -> Tensor:
        return boosthub_attention(*good[:at], tensor, *good[at + 1 :], **arguments)

    for at, tensor, message in (
        (0, good[0][0], r"q is torch.float32 \(4, 2, 8\); expected"),
        (3, good[3][:, :3], r"q_hub is \(1, 3, 2, 8\); expected the shape of q, \(1, 4, 2, 8\)"),
        (1, good[1][:, :3], r"k is \(1, 3, 2, 8\) and v \(1, 5, 2, 8\)"),
        (4, good[4][..., :4], r"k_hub is \(1, 6, 2, 4\) and v_hub"),
        (2, good[2].half(), "dtypes are"),
        (2, good[2].to("meta"), "devices are"),
        (6, torch.ones(1), r"phi is torch.float32 \(1,\); expected a torch.float32 scalar"),
        (6, good[6].half(), "phi is torch.float16"),
    ):
        with pytest.raises(ValueError, match=message):
            call(at, tensor)
    with pytest.raises(ValueError, match="S >= 1"):
        boosthub_attention(good[0], good[1][:, :0], good[2][:, :0], *good[3:])
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        boosthub_attention(*good, impl="cuda")


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, width, message in (
        (torch.float64, 16, "not torch.float64"),
        (torch.bfloat16, 16, "bfloat16 products wrong"),
        (torch.float32, 160, "up to 128 wide, not 160"),
    ):
        tensors, _ = problem((1, 4, 4, 4, 1, width), dtype)
        with pytest.raises(KernelUnavailableError, match=message):
            triton(*tensors)
    tensors, _ = problem((1, 4, 4, 4, 1, 16), torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        triton(*tensors)
