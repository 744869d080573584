"""Codebook matching: indices against exact distances, gradients against float64, memory kept for the backward."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fr_kernels.codebook import reference, triton_backward, triton_impl
from fr_kernels.codebook.op import nearest_code, soft_lookup
from fr_kernels.dispatch import KernelUnavailableError, declared_launches
from kernel_checks import DTYPES, check_operator, compiles_whole, launches, poisoned, within_budget

IMPLS = ("reference", "triton")
# (N, K, D), odd on every side of a tile; one of everything.
SHAPES = [(1, 1, 1), (70, 50, 20), (97, 67, 40)]
MODES = ("embed", "index", "ste")


def data(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, offset: float = 0
) -> tuple[Tensor, Tensor]:
    n, k, d = shape
    generator = torch.Generator().manual_seed(n + k + d)
    features = torch.randn(n, d, generator=generator) + offset
    codebook = torch.randn(k, d, generator=generator) + offset
    return features.to(dtype).requires_grad_(), codebook.to(dtype).requires_grad_()


def exact_distances(features: Tensor, codebook: Tensor) -> Tensor:
    return reference.distances(features.detach().double(), codebook.detach().double())


def output(features: Tensor, codebook: Tensor, beta: float, mode: str, impl: str) -> Tensor:
    """What carries the gradient in this mode."""
    out = soft_lookup(features, codebook, beta, mode, impl=impl)  # pyright: ignore
    return out[0]


def naive(features: Tensor, codebook: Tensor, beta: float, mode: str) -> Tensor:
    """The obvious code in the dtype of its arguments, all in autograd."""
    d = torch.addmm(codebook.square().sum(1), features, codebook.mT, alpha=-2)
    if mode == "ste":
        codes = codebook[d.argmin(1)]
        return codes + (features - features.detach())
    weights = (-beta * d).softmax(1)
    if mode == "embed":
        return weights @ codebook
    return (weights * torch.arange(len(codebook), dtype=d.dtype)).sum(1)


def gradients(out: Tensor, grad: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, grad.to(out.dtype))


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


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "offset"), [*((s, 0) for s in SHAPES), (SHAPES[1], 3)])
@pytest.mark.parametrize("impl", IMPLS)
def test_forward_is_hard_and_gradients_are_within_the_budget(
    impl: str,
    shape: tuple[int, int, int],
    offset: float,
    dtype: torch.dtype,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = data(shape, dtype, offset)
    with poisoned(monkeypatch):
        out = output(*inputs, 0.1, mode, impl)
        codes, index = nearest_code(*inputs, impl=impl)
    assert torch.equal(out, index.to(out.dtype) if mode == "index" else codes)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    with poisoned(monkeypatch):
        got = gradients(out, grad, inputs)
    wide = tuple(t.detach().double().requires_grad_() for t in inputs)
    exact = gradients(naive(*wide, 0.1, mode), grad.double(), wide)
    eager = gradients(naive(*inputs, 0.1, mode), grad, inputs)
    for ours, peer, truth in zip(got, eager, exact, strict=True):
        within_budget(ours, peer, truth)


@pytest.mark.parametrize("indexed", [False, True])
def test_the_explicit_backward_is_autograds(indexed: bool) -> None:
    """In fp64, beyond one chunk of the reference; soft formulas are checked by finite differences, too."""
    features, codebook = (t.detach().double().requires_grad_() for t in data((4100, 17, 6)))
    mode = "index" if indexed else "embed"
    for beta in (0.1, 1.0, 30.0):
        exact = naive(features, codebook, beta, mode)
        grad = torch.randn(exact.shape, dtype=torch.float64)
        got = gradients(
            output(features, codebook, beta, mode, "reference"), grad, (features, codebook)
        )
        for ours, truth in zip(got, gradients(exact, grad, (features, codebook)), strict=True):
            assert (ours - truth).abs().max() <= 1e-11 * truth.abs().max()


def test_gradcheck() -> None:
    features, codebook = (t.detach().double().requires_grad_() for t in data((5, 7, 3)))
    assert torch.autograd.gradcheck(
        lambda f, c: reference.soft_code(f, c, 0.3), (features, codebook)
    )

    def index(f: Tensor, c: Tensor) -> Tensor:
        return reference.soft_index(reference.distances(f, c), 0.3)

    assert torch.autograd.gradcheck(index, (features, codebook))
    assert torch.autograd.gradcheck(lambda c: nearest_code(features, c).codes, (codebook,))


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_many_parts_and_steps_of_the_codebooks_gradient(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the features are split into parts and steps, the sum is the same; two runs are bitwise equal."""
    inputs = data((150, 40, 16), torch.float16)
    grad = torch.randn(150, 16) if mode != "index" else torch.randn(150)

    def run() -> tuple[Tensor, ...]:
        return gradients(output(*inputs, 0.1, mode, "triton"), grad, inputs)

    many, again = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(many, again, strict=True))
    kernel = "chosen" if mode == "ste" else "codes"
    settings = triton_backward.settings(kernel, False, 16, grad.device)
    splits = {triton_backward.split(150, 40, settings)}
    band = torch.finfo(torch.float16).eps * many[1].abs().max()
    for programs in (1, 2, 4):
        monkeypatch.setattr(triton_backward, "PROGRAMS", programs)
        splits.add(triton_backward.split(150, 40, settings))
        other = run()
        assert torch.equal(many[0], other[0])
        assert (many[1] - other[1]).abs().max() <= band
    assert splits == {(1, 3), (2, 2), (4, 1)}


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
def test_views_and_mixed_dtypes(impl: str) -> None:
    wide, codebook = data((20, 2 * 30, 24))
    features = wide[:, ::2].detach().half().requires_grad_()
    book = codebook[::2, 12:].detach().requires_grad_()
    assert not features.is_contiguous() or not book.is_contiguous()
    for mode in MODES:
        out = output(features, book, 0.2, mode, impl)
        grad = torch.randn(24, *out.shape[1:])[: len(out)]
        got = gradients(out, grad, (features, book))
        both = (features.detach().float().requires_grad_(), book.detach().requires_grad_())
        peer = gradients(naive(*both, 0.2, mode), grad, both)
        exact = [t.detach().double().requires_grad_() for t in both]
        truth = gradients(naive(*exact, 0.2, mode), grad.double(), (exact[0], exact[1]))
        within_budget(got[0], peer[0].half(), truth[0])
        within_budget(got[1], peer[1], truth[1])


@pytest.mark.parametrize("impl", IMPLS)
def test_extreme_values_stay_finite(impl: str) -> None:
    """|f| up to 1e4 in fp16 with sharp weights; then beta * gap from none to beyond what fp32 can hold."""
    features, codebook = (1e4 * t.detach().clamp(-1, 1) for t in data((40, 30, 32)))
    codebook[7] = codebook[3]
    for mode in MODES:
        inputs = (features.half().requires_grad_(), codebook.half().requires_grad_())
        out = output(*inputs, 1.0, mode, impl)
        assert out.isfinite().all()
        for gradient in gradients(out, torch.ones_like(out), inputs):
            assert gradient.isfinite().all()
    for gap in (0.0, 17.0, 110.0, 1e6):
        f = torch.zeros(1, 1, requires_grad=True)
        c = torch.tensor([[1.0], [(1 + gap) ** 0.5]], requires_grad=True)
        wide = (f.detach().double().requires_grad_(), c.detach().double().requires_grad_())
        truth = gradients(naive(*wide, 1.0, "index"), torch.ones(1), wide)
        got = gradients(output(f, c, 1.0, "index", impl), torch.ones(1), (f, c))
        for ours, exact in zip(got, truth, strict=True):
            # e^-gap multiplies the rounding of the distances.
            slack = torch.finfo(torch.float32).eps * (2 + 2 * gap)
            assert (ours - exact).abs().max() <= slack * exact.abs().max() + 1e-37


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


@pytest.mark.parametrize("mode", ["embed", "index"])
def test_only_the_index_depends_on_how_codes_are_numbered(mode: str) -> None:
    features, codebook = data((50, 40, 8))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    grads = [
        torch.autograd.grad(output(features, book, 0.2, mode, "reference").sum(), features)[0]
        for book in (codebook, codebook[order])
    ]
    cosine = torch.cosine_similarity(*(g.flatten() for g in grads), dim=0)
    assert cosine > 0.999 if mode == "embed" else cosine < 0.9


def test_mode_index_sends_the_gradient_of_its_codes_to_the_chosen() -> None:
    features, codebook = data((30, 20, 16))
    for impl in IMPLS:
        both = soft_lookup(features, codebook, 0.1, "index", impl=impl)
        g, h = torch.randn(30), torch.randn(30, 16)
        pair = (both.value, both.codes)
        got = torch.autograd.grad(pair, (features, codebook), (g, h), retain_graph=True)
        soft = gradients(output(features, codebook, 0.1, "index", impl), g, (features, codebook))
        chosen = torch.zeros(20, 16).index_add_(0, both.indices, h)
        assert torch.equal(got[0], soft[0])
        assert torch.allclose(got[1], soft[1] + chosen, rtol=1e-6, atol=1e-6)
        (alone,) = torch.autograd.grad(both.codes, codebook, h)
        assert torch.allclose(alone, chosen, rtol=1e-6, atol=1e-6)


def kept(call: Callable[[], object], *inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward, beside the inputs; a storage counts once."""
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    own = {t.untyped_storage()._cdata for t in inputs}
    total = sum(t.untyped_storage().nbytes() for key, t in seen.items() if key not in own)
    assert result is not None
    return total


@pytest.mark.parametrize("mode", MODES)
def test_memory_kept_is_one_percent_of_the_naive_version(mode: str) -> None:
    """16 small images for real, then LAFR's 16 x 4096 features on the meta device, which keeps shapes alone."""

    def obvious(f: Tensor, c: Tensor) -> Tensor:
        weights = (-torch.cdist(f, c).square()).softmax(1)
        if mode == "index":
            return (weights * torch.arange(len(c), device=f.device)).sum(1)
        soft = weights @ c
        return f + (soft - f).detach() if mode == "ste" else soft

    for n, d, device in ((16 * 16, 32, "cpu"), (16 * 4096, 256, "meta")):
        f = torch.randn(n, d, device=device, requires_grad=True)
        c = torch.randn(1024, d, device=device, requires_grad=True)
        ours = kept(lambda f=f, c=c: soft_lookup(f, c, 0.1, mode), f, c)  # pyright: ignore
        theirs = kept(lambda f=f, c=c: obvious(f, c), f, c)
        assert ours <= 16 * n
        assert ours <= 0.01 * theirs, f"{device}: {ours} of {theirs} bytes"


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
