"""Which device and which number format a run uses, and why."""

from typing import Literal, NamedTuple

import torch

from fr_deploy.errors import ResourceError, UsageError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DtypeName = Literal["fp32", "fp16", "bf16"]


class Place(NamedTuple):
    """Where to compute, and in what."""

    device: torch.device
    dtype: DtypeName

    @property
    def label(self) -> str:
        """The device as shown to the user."""
        if self.device.type != "cuda":
            return str(self.device)
        return f"{self.device} ({torch.cuda.get_device_name(self.device)})"


def choose_place(device: str = "auto", dtype: str = "auto", *, require_gpu: bool = False) -> Place:
    """Resolve names: the first GPU if there is one, float16 there, float32 on a CPU.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "fp32", "fp16" or "bf16".
        require_gpu: fail where "auto" would fall back to the CPU.

    Raises:
        UsageError: another name, or a CPU asked for together with `require_gpu`.
        ResourceError: there is no such GPU.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"dtype is {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    found = _device(device, require_gpu)
    chosen = dtype if dtype != "auto" else "fp32" if found.type == "cpu" else "fp16"
    return Place(found, chosen)  # pyright: ignore[reportArgumentType]


def parse_device(name: str) -> tuple[str, int]:
    """The kind of a device, and its index, 0 where none is named.

    Raises:
        UsageError: it is not "auto", "cpu", "cuda" or "cuda:N".
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise UsageError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N")
    return kind, int(index or 0)


def _device(name: str, require_gpu: bool) -> torch.device:
    kind, index = parse_device(name)
    if kind == "cpu" and require_gpu:
        raise UsageError("--require-gpu together with --device cpu: leave one of them out")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count and not require_gpu):
        return torch.device("cpu")
    if index >= count:
        raise ResourceError(
            f"{name}: {no_gpu()}"
            if not count
            else f"{name}: there are {count} GPUs, from cuda:0 on"
        )
    return torch.device("cuda", index)


def no_gpu() -> str:
    """Why torch can use no GPU, and what to do about it."""
    if torch.version.cuda is None:
        return (
            f"this torch ({torch.__version__}) is built for CPUs. For NVIDIA GPUs install a CUDA build: "
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu130"
        )
    return f"torch {torch.__version__} finds no NVIDIA GPU or driver; look at: nvidia-smi"
