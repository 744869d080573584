"""What the doctor says of attention: every kind is computed, and a wrong or absent one is named with its reason."""

import json
import warnings

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from fr_deploy.cli import main
from fr_deploy.models.attend import KINDS, Kind, attend
from fr_deploy.runtime import doctor, doctor_attention
from fr_deploy.runtime.devices import DtypeName, Place
from fr_deploy.runtime.doctor_attention import check_attention, summary

ON_CPU = {"sdpa", "flash", "math", "products"}


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_kind_is_computed_at_both_widths(
    dtype: DtypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fr_deploy.models.attend.find_spec", lambda _: None)
    checks = check_attention(Place(torch.device("cpu"), dtype))
    assert [(c.kind, c.channels) for c in checks] == [(k, n) for k in KINDS for n in (64, 512)]
    assert {c.dtype for c in checks} == {dtype}
    assert {c.kind for c in checks if c.works} == ON_CPU
    assert all(c.works != bool(c.reason) for c in checks)
    lines = dict(zip(KINDS, summary(checks), strict=True))
    assert lines["flash"] == "  ok  flash          heads of 64 and 512 channels"
    assert "no  cudnn          torch has this kernel on GPUs alone" in lines["cudnn"]
    assert lines["xformers"].endswith('pip install "fr-deploy[gpu]"')


def test_a_kind_that_lies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        return attend(q, k, v, kind) * (1.001 if kind == "math" else 1)

    monkeypatch.setattr(doctor_attention, "attend", lies)
    checks = check_attention(Place(torch.device("cpu"), "fp32"))
    wrong = [c for c in checks if c.kind == "math"]
    assert not any(c.works for c in wrong)
    assert all(c.reason.startswith("off by ") for c in wrong)
    assert {c.kind for c in checks if c.works} == ON_CPU - {"math"}


def test_the_reason_is_what_torch_warns_of_and_not_what_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As torch does on a GPU: an error that says nothing, and warnings about every kernel."""

    def narrow(q: Tensor, k: Tensor, v: Tensor, kind: Kind) -> Tensor:
        if kind == "flash" and q.shape[-1] > 256:
            warnings.warn(
                "Flash attention kernel not used because: (Triggered internally at sdp.cpp:1)",
                stacklevel=1,
            )
            warnings.warn(
                "heads are wider than 256. (Triggered internally at sdp.cpp:2)", stacklevel=1
            )
            warnings.warn(
                "Memory Efficient attention has been runtime disabled. (Triggered ...)",
                stacklevel=1,
            )
            raise RuntimeError("No available kernel. Aborting execution.")
        return attend(q, k, v, "products")

    monkeypatch.setattr(doctor_attention, "attend", narrow)
    flash = [c for c in check_attention(Place(torch.device("cpu"), "fp32")) if c.kind == "flash"]
    assert [(c.works, c.reason) for c in flash] == [
        (True, ""),
        (False, "heads are wider than 256."),
    ]
    line = summary(check_attention(Place(torch.device("cpu"), "fp32")))[KINDS.index("flash")]
    assert (
        line == "  ok  flash          heads of 64 channels; not of 512: heads are wider than 256."
    )


def test_the_command_prints_them(monkeypatch: pytest.MonkeyPatch) -> None:
    works = doctor.Check(
        "torch-eager", "cpu", True, "", 1.0
    )  # test_cli_doctor.py tests the backends
    monkeypatch.setattr(doctor, "check_backends", lambda *_, **__: [works])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = CliRunner().invoke(main, ["doctor"]).output
    assert "\nattention on cpu in fp32\n  ok  sdpa " in text
    done = CliRunner().invoke(main, ["doctor", "--json"])
    kinds = json.loads(done.stdout)["attention"]
    assert [k["kind"] for k in kinds] == [kind for kind in KINDS for _ in (64, 512)]
    assert {k["kind"] for k in kinds if k["works"]} >= ON_CPU
