"""Every op at every benchmark shape on a GPU: forward and gradients within the budget, two runs equal bit for bit.

Run alone, `pytest -m gpu`: with other tests in the same process Triton's kernels are interpreted.
"""

import pytest
import torch
from torch import Tensor

from fr_bench.kernel_cases import Case, cases
from fr_bench.kernels import DTYPES, check


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op} {case.shape}")
def test_on_a_gpu(case: Case, dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    _, inputs = check(case, "triton", dtype, torch.device("cuda"))
    first, second = (_tensors(case.ours(*inputs, impl="triton")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if not case.backward:  # torch.compile does not trace a call of autograd.grad
        whole = torch.compile(case.ours, fullgraph=True)(*inputs, impl="triton")
        assert all(torch.equal(a, b) for a, b in zip(first, _tensors(whole), strict=True))
