"""Codebook matching: indices against exact distances, the operators' contract, launches, refusals."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from codebook_cases import IMPLS, MODES, data, exact_distances, gradients, output
from fr_kernels.codebook import reference, triton_backward, triton_impl
from fr_kernels.codebook.op import nearest_code, soft_lookup
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from kernel_checks import DTYPES, check_operator, compiles_whole, launches, poisoned


@pytest.mark.oldest
@pytest.mark.parametrize("shape", [(1, 1, 1), (5000, 33, 8), (63, 1024, 256)])
def test_nearest_is_the_brute_force_one(shape: tuple[int, int, int]) -> None:
    features, codebook = data(shape)
    codes, index = nearest_code(features, codebook)
    apart = features.detach().double()[:, None] - codebook.detach().double()[None]
    exact = apart.square().sum(2)
    expected = exact.argmin(1)
    differ = index != expected
    # A different index is right only where the two distances are equal to within fp32 rounding.
    gap = exact.gather(1, index.long()[:, None]) - exact.gather(1, expected[:, None])
    assert (gap[differ] <= 1e-5 * shape[2]).all()
    assert differ.float().mean() < 0.002
    assert torch.equal(codes, codebook[index])
    assert index.dtype == torch.int32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_whole_numbers_and_ties_are_exact(
    impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-2, 3, (97, 20), generator=generator).to(dtype)
    codebook = torch.randint(-2, 3, (131, 20), generator=generator).to(dtype)
    codebook[65:130] = codebook[:65].clone()  # each is a tie, in another tile
    exact = exact_distances(features, codebook)
    lowest = (exact == exact.min(1, keepdim=True).values).int().argmax(1)
    with poisoned(monkeypatch):
        codes, index = nearest_code(features, codebook, impl=impl)
    assert index.tolist() == lowest.tolist()
    assert torch.equal(codes, codebook[index])
    same = torch.ones(40, 3, dtype=dtype)
    assert nearest_code(features[:, :3], same, impl=impl).indices.eq(0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 10])
def test_the_chosen_code_is_as_near_as_fp32_can_tell(dtype: torch.dtype, offset: float) -> None:
    """Excess distance, in fp64, of the chosen code: at most 2 x (the eager fp32 version's + rounding band)."""
    features, codebook = (t.detach() for t in data((150, 200, 64), dtype, offset))
    exact = exact_distances(features, codebook)
    least = exact.min(1).values

    def excess(index: Tensor) -> float:
        return float((exact.gather(1, index.long()[:, None])[:, 0] - least).max())

    band = float(torch.finfo(torch.float32).eps * codebook.double().square().sum(1).max())
    index = nearest_code(features, codebook, impl="triton").indices
    eager = reference.nearest_index(features.float(), codebook.float())
    allowed = 2 * (excess(eager) + band)
    assert excess(index) <= allowed
    if offset:  # ... which distances in 16 bits do not keep
        half, book = features.half(), codebook.half()
        short = torch.addmm(book.square().sum(1), half, book.mT, alpha=-2).argmin(1)
        assert excess(short) > allowed


def test_the_tiles_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_impl, "LARGE", 200)
    features, codebook = (t.detach() for t in data((205, 40, 16), torch.float16))
    assert triton_impl.lookup_name(len(features), False) == "lookup large"
    codes, index = nearest_code(features, codebook, impl="triton")
    exact = exact_distances(features, codebook)
    gap = exact.gather(1, index.long()[:, None])[:, 0] - exact.min(1).values
    assert gap.max() <= 1e-5
    assert torch.equal(codes, codebook[index])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_code_that_is_nan_is_never_chosen(impl: str) -> None:
    features, codebook = (t.detach() for t in data((40, 70, 16)))
    expected = nearest_code(features, codebook[1:], impl=impl).indices + 1
    codebook[0] = float("nan")
    assert torch.equal(nearest_code(features, codebook, impl=impl).indices, expected)
    soft = soft_lookup(features, codebook, 1.0, impl=impl)
    assert torch.equal(soft.indices, expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_feature_that_is_not_finite_spoils_only_itself(impl: str) -> None:
    features, codebook = (t.detach() for t in data((40, 30, 16)))
    clean = nearest_code(features, codebook, impl=impl)
    spoilt = features.clone()
    spoilt[3], spoilt[11], spoilt[12] = float("nan"), float("inf"), -float("inf")
    inputs = (spoilt.requires_grad_(), codebook)
    got = nearest_code(*inputs, impl=impl)
    assert bool(((got.indices >= 0) & (got.indices < 30)).all())
    rest = [i for i in range(40) if i not in (3, 11, 12)]
    assert torch.equal(got.indices[rest], clean.indices[rest])
    out = output(*inputs, 0.1, "embed", impl)
    (gradient,) = torch.autograd.grad(out.sum(), spoilt)
    assert gradient[rest].isfinite().all()


def test_autocast_does_not_round_the_distances() -> None:
    features, codebook = data((60, 40, 16), offset=20)
    grad = torch.randn(60, 16)
    expected = soft_lookup(features, codebook, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        got = soft_lookup(features, codebook, 0.1)
        (gradient,) = torch.autograd.grad(got.codes, features, grad)
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(gradient, torch.autograd.grad(expected.codes, features, grad)[0])


def test_operator_contract() -> None:
    ops = torch.ops.fr_kernels
    for dtype in (*DTYPES, torch.bfloat16, torch.float64):
        features, codebook = data((6, 5, 4), dtype)
        check_operator(ops.nearest_code, features, codebook, True, "reference")
        check_operator(
            ops.soft_lookup, features, codebook, 0.5, dtype == torch.float16, "reference"
        )
    features, codebook = (t.detach() for t in data((6, 5, 4)))
    _, index, _, stats = ops.soft_lookup(features, codebook, 0.5, True, "reference")
    check_operator(ops.nearest_code_backward, features, index, codebook, "reference")
    given = (features, codebook, index, stats, 0.5)
    check_operator(ops.soft_lookup_backward, features, *given, False, "reference")
    check_operator(ops.soft_lookup_backward, features[:, 0], *given, True, "reference")


def test_it_compiles_whole() -> None:
    features, codebook = data((9, 7, 4))

    def both(f: Tensor, c: Tensor) -> Tensor:
        out = soft_lookup(f, c, 0.5, "index")
        return soft_lookup(f, c, 0.5).codes.sum() + nearest_code(f, c).codes.sum() + out.value.sum()

    out = compiles_whole(both, features, codebook)
    got = torch.autograd.grad(out, (features, codebook))
    expected = torch.autograd.grad(both(features, codebook), (features, codebook))
    assert all(torch.allclose(a, b) for a, b in zip(got, expected, strict=True))


def test_launches_are_the_declared_ones() -> None:
    features, codebook = (t.detach() for t in data((10, 9, 16)))
    made = launches(lambda: triton_impl.nearest_code(features, codebook))
    assert len(made) == declared_launches("nearest_code", features, codebook)
    _, index = triton_impl.nearest_code(features, codebook)
    made = launches(lambda: triton_backward.nearest_code_backward(features, index, codebook))
    assert len(made) == declared_launches("nearest_code_backward")
    for indexed in (False, True):
        made = launches(lambda i=indexed: triton_impl.soft_lookup(features, codebook, 0.1, i))
        assert len(made) == declared_launches("soft_lookup")
        _, index, value, stats = triton_impl.soft_lookup(features, codebook, 0.1, indexed)
        given = (value if indexed else features, features, codebook, index, stats, 0.1, indexed)
        made = launches(lambda given=given: triton_backward.soft_lookup_backward(*given))
        assert len(made) == declared_launches("soft_lookup_backward")


def test_flops() -> None:
    features, codebook = data((6, 5, 4))
    for mode, products in (("embed", 5), ("index", 3)):
        with FlopCounterMode(display=False) as forward:
            out = output(features, codebook, 0.5, mode, "reference")
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert forward.get_total_flops() == 2 * 6 * 5 * 4
        assert backward.get_total_flops() == products * 2 * 6 * 5 * 4


@pytest.mark.parametrize("impl", IMPLS)
def test_empty_batch(impl: str) -> None:
    features, codebook = data((0, 3, 4))
    assert nearest_code(features, codebook, impl=impl).indices.shape == (0,)
    for mode in MODES:
        out = output(features, codebook, 0.5, mode, impl)
        got = gradients(out, torch.zeros(out.shape), (features, codebook))
        assert got[0].shape == (0, 4)
        assert got[1].eq(0).all()


def test_wrong_calls() -> None:
    f, c = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="same D"):
        nearest_code(f, torch.zeros(3, 5))
    with pytest.raises(ValueError, match="needs a code"):
        nearest_code(f, torch.zeros(0, 4))
    with pytest.raises(ValueError, match="int64; allowed: floating"):
        nearest_code(f.long(), c)
    with pytest.raises(ValueError, match="beta"):
        soft_lookup(f, c, 0.0)
    with pytest.raises(ValueError, match="'hard'; allowed: 'embed', 'index', 'ste'"):
        soft_lookup(f, c, 1.0, "hard")  # pyright: ignore
    with pytest.raises(ValueError, match="allowed: 'auto', 'reference', 'triton'"):
        nearest_code(f, c, impl="cuda")


def test_an_explicit_request_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    f, c = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(KernelUnavailableError, match="float64"):
        nearest_code(f.double(), c, impl="triton")
    with pytest.raises(KernelUnavailableError, match="D is 300"):
        soft_lookup(torch.zeros(2, 300), torch.zeros(3, 300), 1.0, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="on cpu, not on a GPU"):
        nearest_code(f, c, impl="triton")


def test_the_reference_runs_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from fr_kernels.codebook.argmin import differentiable_argmin\n"
        "from fr_kernels.codebook.op import soft_lookup\n"
        "f = torch.randn(5, 4, requires_grad=True)\n"
        "for mode in ('embed', 'index', 'ste'):\n"
        "    soft_lookup(f, torch.randn(3, 4), 1.0, mode)[0].sum().backward()\n"
        "differentiable_argmin(f, 1).value.sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
