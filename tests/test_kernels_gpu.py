"""Every op at every benchmark shape on a GPU: forward and gradients within the budget, two runs equal bit for bit.

Run alone, `pytest -m gpu`: with other tests in the same process Triton's kernels are interpreted.
"""

import pytest
import torch
from torch import Tensor

from fr_bench.case import Case
from fr_bench.kernel_cases import cases
from fr_bench.kernels import check


def _tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.op} {case.shape} {dtype}")
        for case in cases()
        for dtype in case.dtypes
    ],
)
def test_on_a_gpu(case: Case, dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    _, inputs = check(case, case.compiled, dtype, torch.device("cuda"))
    first, second = (_tensors(case.ours(*inputs, impl=case.compiled)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if not case.backward:  # torch.compile does not trace a call of autograd.grad
        whole = torch.compile(case.ours, fullgraph=True)(*inputs, impl=case.compiled)
        assert all(torch.equal(a, b) for a, b in zip(first, _tensors(whole), strict=True))
