"""Which implementation runs: an explicit request never falls back, `auto` says why."""

import logging

import pytest
import torch

from fr_kernels import dispatch
from fr_kernels.dispatch import Impl, KernelUnavailableError, resolve

CPU = (torch.zeros(1),)


def test_auto_on_a_cpu_is_the_reference_and_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_said", set())
    with caplog.at_level(logging.INFO, logger="fr_kernels"):
        for _ in range(3):
            assert resolve("op_a", "auto", CPU, (Impl.TRITON,)) is Impl.REFERENCE
    assert [record.getMessage() for record in caplog.records] == [
        "op_a runs reference: not triton: the tensors are on cpu, not on a GPU"
    ]


def test_auto_is_never_the_interpreter() -> None:
    assert dispatch.interpreting()
    assert resolve("op_b", "auto", CPU, (Impl.TRITON,)) is Impl.REFERENCE
    assert resolve("op_b", "triton", CPU, (Impl.TRITON,)) is Impl.TRITON


def test_explicit_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="impl of op_c is 'fast'; allowed: 'auto', 'reference', 'triton'"
    ):
        resolve("op_c", "fast", CPU, (Impl.TRITON,))
    with pytest.raises(ValueError, match=r"allowed: 'auto', 'reference'$"):
        resolve("op_c", "triton", CPU, ())
    with pytest.raises(KernelUnavailableError, match="head dimension 7"):
        resolve("op_c", "triton", CPU, (Impl.TRITON,), unfit="its head dimension 7 is not served")
    assert resolve("op_c", "reference", CPU, ()) is Impl.REFERENCE
    monkeypatch.setattr(dispatch, "_has", lambda _: False)
    with pytest.raises(KernelUnavailableError, match="pip install triton"):
        resolve("op_c", "triton", CPU, (Impl.TRITON,))
    with pytest.raises(KernelUnavailableError, match=r'pip install "fr-deploy\[cuda\]"'):
        resolve("op_c", "cuda", CPU, (Impl.CUDA,))
