"""The checks of `kernel_checks.py` can fail: on memory that is not written, and on memory that is not the kernel's."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from fr_kernels import tune
from fr_kernels.launch import Settings, Tunable, launch, launches_made, triton_ops
from kernel_checks import DTYPES, poisoned


@triton.jit
def fill_kernel(OUT, first, count, SIZE: tl.constexpr):
    at = first + tl.arange(0, SIZE)
    tl.store(OUT + at, at, mask=at < count)


def filled(dtype: torch.dtype, first: int, count: int) -> Tensor:
    """A kernel that writes the elements from `first` to before `count` of a tensor of ten."""
    out = torch.empty(10, dtype=dtype)
    launch(fill_kernel, (1,), out, first, count, settings=Settings({"SIZE": 16}))
    return out


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32])
def test_what_is_not_written_shows(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with poisoned(monkeypatch):
        whole, part = filled(dtype, 0, 10), filled(dtype, 0, 9)
    assert torch.equal(whole, torch.arange(10).to(dtype))
    missing = part[9].item()
    assert missing != missing if dtype.is_floating_point else missing == 2**31 - 1


def writes_outside(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the guard bands say of a call; empty where they are whole."""
    try:
        with poisoned(monkeypatch):
            run()
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32])
def test_one_element_outside_is_caught(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writes_outside(lambda: filled(dtype, 0, 10), monkeypatch) == ""
    for first, count, place in ((-1, 10, "before"), (0, 11, "after")):
        said = writes_outside(lambda n=(first, count): filled(dtype, *n), monkeypatch)
        assert said.startswith(f"written {place} a tensor of {dtype}: ")


def test_shapes_strides_and_storage_are_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    like = torch.zeros(2, 3, 4, 5)
    with poisoned(monkeypatch):
        made: list[tuple[Tensor, Callable[[], Tensor]]] = [
            (out, make)
            for make in (
                lambda: torch.empty(2, 3),
                lambda: torch.empty(0, 3),
                lambda: torch.empty((2, 3, 4, 5), memory_format=torch.channels_last),
                lambda: torch.empty_like(like, dtype=torch.float16),
                lambda: like.new_empty((2, 2), dtype=torch.int32),
                lambda: torch.empty_strided((2, 3), (5, 1)),
            )
            for out in (make(),)
        ]
    for out, make in made:
        plain = make()
        assert (out.shape, out.stride(), out.dtype) == (plain.shape, plain.stride(), plain.dtype)
        assert not out._is_view()


@contextmanager
def without_masks(kernel: str, monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    """While `kernel` runs, stores ignore their masks; yields a line for each store whose mask was not whole."""
    running: list[str] = []
    ignored: list[str] = []
    call, store = (
        interpreter.GridExecutor.__call__,
        interpreter.InterpreterBuilder.create_masked_store,
    )

    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        running.append(self.fn.__name__)
        try:
            return call(self, *args, **kwargs)
        finally:
            running.pop()

    def unmasked(self: Any, ptrs: Any, value: Any, mask: Any, *others: Any) -> Any:
        if running == [kernel] and not mask.data.all():
            ignored.append(kernel)
            mask = interpreter.TensorHandle(mask.data | True, mask.dtype)
        return store(self, ptrs, value, mask, *others)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", named)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", unmasked)
        yield ignored


def launchers(op: str) -> list[Tunable]:
    """Every launcher of the op at a small shape, in half precision."""
    return [t for t in tune.tunables(op, small=True) if "float32" not in t.name]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of tile rows that are never stored
@pytest.mark.parametrize("op", triton_ops())
def test_a_missing_mask_is_caught_in_every_kernel(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel of each launcher, its masks ignored: it fails if a mask mattered, and passes with them."""
    for tunable in launchers(op):
        inputs = tunable.inputs(torch.device("cpu"))

        def run(tunable: Tunable = tunable, inputs: tuple[Any, ...] = inputs) -> None:
            tunable.run(*inputs)

        with launches_made() as made:
            assert writes_outside(run, monkeypatch) == "", tunable.name
        for kernel in {launched.name for launched in made}:
            with without_masks(kernel, monkeypatch) as ignored:
                said = writes_outside(run, monkeypatch)
            assert ignored, (tunable.name, kernel)
            assert said.startswith("written after"), (tunable.name, kernel, said)
