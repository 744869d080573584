"""soft_lookup: gradients against float64, in every mode, and the memory kept for the backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codebook_cases import IMPLS, MODES, SHAPES, data, gradients, naive, output
from fr_kernels.codebook import reference, triton_backward
from fr_kernels.codebook.op import nearest_code, soft_lookup
from kernel_checks import DTYPES, poisoned, within_budget


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
