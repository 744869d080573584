"""What `fr-deploy bench pipeline` compares: the same weights, run in every way that this machine can."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fr_bench.random_graph import random_graph
from fr_deploy.bundle import load_bundle, read_bundle
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.runtime.devices import DTYPES, DtypeName, Place
from fr_deploy.runtime.select import onnx_backend
from fr_deploy.runtime.torch_backend import Mode, TorchBackend, compiled_ops

if TYPE_CHECKING:  # without diffusers the peers that need it are left out
    from fr_deploy.models.lafr import LafrModel

Run = Callable[[Tensor], Tensor]
"""uint8 [B, S, S, 3] on the CPU -> the same."""
DIFFUSERS, COMPILED, UNFOLDED = "diffusers eager", "diffusers compile", "unfolded channels_last"
UNFOLDED_KERNELS = "unfolded, kernels"
FOLDED, KERNELS, GRAPHS, OURS_COMPILED, ONNX = (
    "folded", "folded, kernels", "folded, kernels, CUDA graph", "folded, compile", "folded, onnxruntime",
)  # fmt: skip


@dataclass(frozen=True)
class Technique:
    """One way to run the model."""

    name: str
    make: Callable[[], Run]
    form: str = ""
    """What `fr-deploy inspect` calls the operations it launches; empty where a compiler decides."""
    diffusers: bool = False
    """It needs diffusers."""


class Source:
    """One model's weights, made anew for each technique that takes them."""

    def __init__(self, name: str, place: Place) -> None:
        """Choose a model.

        Args:
            name: a bundle; or a preset that is none, which gets random weights made on the device.
            place: where and in what it runs.
        """
        self.name, self.place = name, place
        self.random = name in PRESETS and name != "lafr-mini" and not Path(name).exists()
        self.preset = PRESETS[name] if self.random else read_bundle(name).preset
        self.diffusers = find_spec("diffusers") is not None
        """Whether it is installed; without it there is no unfolded model."""

    def model(self, dtype: DtypeName | None = None) -> "LafrModel":
        """The unfolded model on the device, NCHW; needs diffusers."""
        made = self._random() if self.random else load_bundle(self.name)
        return made.to(self.place.device, DTYPES[dtype or self.place.dtype])

    def graph(self) -> RestorationGraph:
        """The folded graph, float32, on the device."""
        device = self.place.device
        if self.random and not self.diffusers:
            return random_graph(self.preset, device)
        with device:
            graph = RestorationGraph(self.preset)
        if self.random:
            made = self._random()
            return graph.fold(made.state_dict(), made.time_embedding(), made.scaling)
        read = read_bundle(self.name)
        tensors = {name: tensor.to(device) for name, tensor in read.tensors.items()}
        return graph.fold(tensors, read.time_embedding.to(device), read.scaling)

    def _random(self) -> "LafrModel":
        from fr_deploy.models.lafr import LafrModel

        torch.manual_seed(0)
        with self.place.device:
            return LafrModel(self.preset).eval().requires_grad_(False)


def reference(source: Source) -> tuple[str, Run]:
    """What every technique's picture is held to, and its name.

    Plain diffusers modules in eager float32; where diffusers is not installed, the folded graph on torch's own ops.
    """
    if source.diffusers:
        return DIFFUSERS, _plain(source.model("fp32"))
    exact = Place(source.place.device, "fp32")
    backend = TorchBackend(source.graph(), exact)
    backend.graph.use_kernels(False)
    return FOLDED, backend.run


def techniques(source: Source) -> list[Technique]:
    """All that this place can run, each adding one thing to one before it; with diffusers or without."""
    on_gpu = source.place.device.type == "cuda"
    made = [
        Technique(DIFFUSERS, lambda: _plain(source.model()), "model", True),
        Technique(COMPILED, lambda: _plain(_compiled_layout(source), compiled=True), "", True),
        Technique(UNFOLDED, lambda: _plain(_channels_last(source.model())), "model", True),
        Technique(FOLDED, lambda: _torch(source, "eager", kernels=False), "graph"),
    ]
    if on_gpu:
        made += [
            Technique(KERNELS, lambda: _torch(source, "eager"), "kernels"),
            Technique(GRAPHS, lambda: _torch(source, "graphs"), "kernels"),
            Technique(OURS_COMPILED, lambda: _torch(source, "compile", kernels=False)),
        ]
    elif source.place.dtype == "fp32":
        if compiled_ops(source.place):
            made += [
                Technique(UNFOLDED_KERNELS, lambda: _unfolded_on_kernels(source), "", True),
                Technique(KERNELS, lambda: _torch(source, "eager")),
            ]
        made.append(Technique(ONNX, lambda: onnx_backend(source.graph(), source.place).run))
    return made


def _plain(model: "LafrModel", *, compiled: bool = False) -> Run:
    from fr_bench.plain_diffusers import PlainDiffusers

    return PlainDiffusers(model, compiled=compiled)


def _unfolded_on_kernels(source: Source) -> Run:
    from fr_bench.plain_diffusers import PlainDiffusers, on_kernels

    return PlainDiffusers(on_kernels(_channels_last(source.model())))


def _torch(source: Source, mode: Mode, *, kernels: bool | None = None) -> Run:
    backend = TorchBackend(source.graph(), source.place, mode)
    if kernels is not None:
        backend.graph.use_kernels(kernels)
    return backend.run


def _channels_last(model: "LafrModel") -> "LafrModel":
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _compiled_layout(source: Source) -> "LafrModel":
    """What each peer's users are told to use: channels_last on a GPU; inductor chooses on a CPU."""
    model = source.model()
    return _channels_last(model) if source.place.device.type == "cuda" else model
