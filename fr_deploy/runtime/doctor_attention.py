"""Which kinds of attention this machine's device computes, and why not the others."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fr_deploy.errors import FrDeployError
from fr_deploy.models.attend import KINDS, WIDEST, Kind, attend, check_kind
from fr_deploy.runtime.devices import DTYPES, Place
from fr_kernels.budget import budget

CHANNELS = (64, 2 * WIDEST)
"""A head of Stable Diffusion's UNet, and its VAE's one head, which is wider than flash kernels take."""
SHAPE = (2, 2, 256)  # images, heads and tokens
_ON_GPUS: tuple[Kind, ...] = ("efficient", "cudnn")


@dataclass(frozen=True)
class AttentionCheck:
    """One kind's self-test at one width."""

    kind: str
    device: str
    dtype: str
    channels: int
    """A head."""
    works: bool
    reason: str
    """Why it does not; empty where it does."""


def check_attention(place: Place) -> list[AttentionCheck]:
    """Compute every kind once at each width, and hold it to the error budget of eager code (`fr_kernels.budget`)."""
    checks: list[AttentionCheck] = []
    for kind in KINDS:
        for channels in CHANNELS:
            why = _reason(kind, place, channels)
            checks.append(
                AttentionCheck(kind, place.label, place.dtype, channels, not why, why or "")
            )
    return checks


def summary(checks: list[AttentionCheck]) -> list[str]:
    """A line a kind."""
    return [_line([c for c in checks if c.kind == kind]) for kind in KINDS]


def _line(checks: list[AttentionCheck]) -> str:
    done = [str(check.channels) for check in checks if check.works]
    whys = dict.fromkeys(check.reason for check in checks if not check.works)
    parts = [f"heads of {' and '.join(done)} channels"] if done else []
    for why in whys:
        wide = ", ".join(str(check.channels) for check in checks if check.reason == why)
        parts.append(f"not of {wide}: {why}" if done or len(whys) > 1 else why)
    return f"  {'ok' if done else 'no':<3} {checks[0].kind:<14} {'; '.join(parts)}"


@torch.inference_mode()
def _reason(kind: Kind, place: Place, channels: int) -> str | None:
    q, k, v = _drawn(place, channels)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch says why it has no kernel in warnings
        try:
            got = attend(q, k, v, check_kind(kind))
        except FrDeployError as error:
            return str(error)
        except Exception as error:  # whatever a driver or a package raises is the finding
            return _told(kind, place, error, [str(w.message) for w in said])
    measured = budget(got, _eager(q, k, v), _eager(*(t.double() for t in (q, k, v))))
    if not measured.kept:
        return f"off by {measured.error:.1e}; allowed: {measured.allowed:.1e}"
    return None


def _told(kind: Kind, place: Place, error: Exception, said: list[str]) -> str:
    """torch's reasons: those of its warnings that are not about the kernels that were not asked for."""
    if place.device.type == "cpu" and kind in _ON_GPUS:
        return f"torch has this kernel on GPUs alone, and computes on {place.device} here"
    lines = (text.split(" (Triggered internally")[0].strip() for text in said)
    whys = [t for t in lines if "runtime disabled" not in t and not t.endswith("because:")]
    return "; ".join(dict.fromkeys(whys)) or f"{type(error).__name__}: {error}".splitlines()[0]


def _drawn(place: Place, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, *SHAPE, channels)
    q, k, v = torch.randn(shape, generator=generator).to(place.device, DTYPES[place.dtype])
    return q, k, v


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
