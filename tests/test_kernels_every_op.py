"""What holds for every op: two runs are equal, strides do not matter, torch alone is enough, FLOPs are known."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fr_bench.case import Case, Inputs, Outputs
from fr_bench.kernel_cases import cases
from fr_bench.kernels import DTYPES, check
from fr_kernels.dispatch import ops_with_launches

# exp(-z) = inf at z < -88 is how sigmoid gets to 0.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

SMALL = [case for case in cases() if case.on_cpu]
RUNS = [
    pytest.param(
        case,
        impl,
        dtype,
        id=f"{case.op} {case.shape} {impl} {dtype}",
        marks=[pytest.mark.slow] if case.backward and impl == "triton" else [],
    )
    for case in SMALL
    for impl in ("reference", case.compiled)
    for dtype in case.dtypes
    # CUDA C++ needs a GPU, and the interpreter gets products in bfloat16 wrong.
    if impl == "reference" or (impl == "triton" and dtype != "bf16")
]


def run(case: Case, impl: str, inputs: Inputs) -> Outputs:
    result = case.ours(*inputs, impl=impl)
    return result if isinstance(result, tuple) else (result,)


def spread(value: object) -> object:
    """The same numbers in every second element of a larger tensor, its first dimension last in memory."""
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    large = value.new_zeros((*value.shape[::-1], 2))
    return large[..., 0].permute(*reversed(range(value.ndim))).copy_(value)


@pytest.mark.parametrize(("case", "impl", "dtype"), RUNS)
def test_two_runs_and_any_strides_give_the_same(case: Case, impl: str, dtype: str) -> None:
    """Bit for bit; but torch's products, of which references are made, add in the order that the strides suggest."""
    torch.manual_seed(0)
    inputs = case.inputs(torch.device("cpu"), DTYPES[dtype])
    others = tuple(spread(value) for value in inputs)
    assert any(isinstance(t, Tensor) and not t.is_contiguous() for t in others)
    first, again = run(case, impl, inputs), run(case, impl, inputs)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    if impl == "reference":
        check(replace(case, inputs=lambda *_: others), impl, dtype, torch.device("cpu"))
    else:
        strided = run(case, impl, others)
        assert all(torch.equal(one, two) for one, two in zip(first, strided, strict=True))


def test_every_op_is_among_them() -> None:
    forward = [op for op in ops_with_launches() if not op.endswith("_backward")]
    assert sorted({case.op for case in SMALL}) == forward


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch, fr_kernels
for name in fr_kernels.__all__:
    getattr(fr_kernels, name)
from fr_bench.kernel_cases import cases
from fr_bench.kernels import check
done = [
    check(case, "reference", dtype, torch.device("cpu"))[0]
    for case in cases() if case.on_cpu
    for dtype in case.dtypes
]
print(*sorted({c.op for c in done}))
"""


def test_every_op_runs_without_triton_forward_and_backward() -> None:
    """Within its error budget, too: `check` raises where it is not."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False
    )
    forward = [op for op in ops_with_launches() if not op.endswith("_backward")]
    assert done.stdout.split() == forward, done.stderr


def test_every_op_has_a_flop_formula() -> None:
    for op in ops_with_launches():
        assert getattr(torch.ops.fr_kernels, op) in flop_registry
