"""The restoration graph cut where exports cut it: encoder, adapter, UNet, decoder; or whole."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fr_deploy.manifest import PARTS, WHOLE, ComponentName
from fr_deploy.models.presets import Preset
from fr_deploy.models.restorer import RestorationGraph


@dataclass(frozen=True)
class Ends:
    """What a part takes and gives, by name."""

    takes: str
    gives: tuple[str, ...]


ENDS: dict[ComponentName, Ends] = {
    "encoder": Ends("faces", ("latent",)),
    "adapter": Ends("latent", ("aligned", "codes")),
    "unet": Ends("aligned", ("denoised",)),
    "decoder": Ends("denoised", ("restored",)),
    "whole": Ends("faces", ("restored", "codes")),
}
"""`faces` and `restored` are uint8 [B, S, S, 3] RGB, `codes` int32 [B, h w], the others latents [B, C, h, w] in the
weights' dtype."""


class Part(nn.Module):
    """One part as a module of its own: the graph's weights, by the graph's names for them."""

    def __init__(self, graph: RestorationGraph, name: ComponentName) -> None:
        super().__init__()
        self.name: ComponentName = name
        self._graph = (graph,)  # in a tuple, or the graph's other weights would be the part's, too
        for part in PARTS if name == WHOLE else (name,):
            self.add_module(part, getattr(graph, part))

    def forward(self, given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What `ENDS` names."""
        (graph,) = self._graph
        match self.name:
            case "encoder":
                return graph.encoder(given)
            case "adapter":
                codes = graph.adapter.choose(given)
                return graph.adapter.align(given, codes), codes
            case "unet":
                return graph.unet(given)
            case "decoder":
                return graph.to_bytes(graph.decoder(given))
            case "whole":
                stages = graph.stages(given)
                return graph.to_bytes(stages.picture), stages.codes


def example(graph: RestorationGraph, name: ComponentName, batch: int) -> Tensor:
    """Zeros that a part takes."""
    weight = next(graph.parameters())
    if ENDS[name].takes == "faces":
        shape, dtype = (batch, graph.preset.size, graph.preset.size, 3), torch.uint8
    else:
        side = latent_side(graph.preset)
        shape, dtype = (batch, graph.preset.latent_channels, side, side), weight.dtype
    return torch.zeros(shape, dtype=dtype, device=weight.device)


def latent_side(preset: Preset) -> int:
    """h and w of a preset's latents."""
    return preset.size // (preset.patch * 2 ** (len(preset.vae_channels) - 1))
