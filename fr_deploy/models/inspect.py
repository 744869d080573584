"""What folding takes out of a preset, stage by stage: counted on the meta device, no weights needed."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fr_deploy.models.presets import Preset
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.models.trace import Trace, trace

if TYPE_CHECKING:  # the folded graph is counted without diffusers
    from fr_deploy.models.lafr import LafrModel

STAGES = ("encoder", "adapter", "unet", "decoder")


@dataclass(frozen=True)
class Stage:
    """One stage of one form, for one face in float16."""

    form: str
    """"model" (unfolded), "graph" (folded, torch's own ops) or "kernels" (folded, fr_kernels ops)."""
    stage: str
    parameters: int
    gflop: float
    launches: dict[str, int]

    @property
    def total_launches(self) -> int:
        """Of all kinds."""
        return sum(self.launches.values())


def inspect_preset(preset: Preset) -> list[Stage]:
    """Count the unfolded model and both forms of the folded graph, stage by stage; needs diffusers."""
    return [*_inspect_model(preset), *inspect_graph(preset)]


def inspect_graph(preset: Preset) -> list[Stage]:
    """Count both forms of the folded graph, stage by stage."""
    with torch.device("meta"):
        graph = RestorationGraph(preset).half()
        graph.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return [
            *_graph_stages("graph", graph.use_kernels(False)),
            *_graph_stages("kernels", graph.use_kernels(True)),
        ]


def _inspect_model(preset: Preset) -> list[Stage]:
    from fr_deploy.models.lafr import LafrModel, StaticTime

    with torch.device("meta"):
        model = LafrModel(preset).half().eval().requires_grad_(False)
        width = 4 * preset.unet_channels[0]
        model.unet.time_embedding = StaticTime(torch.empty(1, width, dtype=torch.half))
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return _model_stages(model, preset)


def totals(stages: list[Stage], form: str) -> Stage:
    """All stages of one form, added up."""
    of_form = [stage for stage in stages if stage.form == form]
    names = sorted({name for stage in of_form for name in stage.launches})
    launches = {name: sum(stage.launches.get(name, 0) for stage in of_form) for name in names}
    parameters = sum(stage.parameters for stage in of_form)
    gflop = round(sum(stage.gflop for stage in of_form), 3)
    return Stage(form, "total", parameters, gflop, launches)


def to_json(preset: Preset, stages: list[Stage]) -> dict[str, Any]:
    """The counts as plain values."""
    forms = list(dict.fromkeys(stage.form for stage in stages))
    rows = [*stages, *(totals(stages, form) for form in forms)]
    return {
        "preset": asdict(preset),
        "rows": [{**asdict(row), "total_launches": row.total_launches} for row in rows],
    }


def _model_stages(model: "LafrModel", preset: Preset) -> list[Stage]:
    faces = torch.empty(1, preset.size, preset.size, 3, dtype=torch.uint8)

    def to_picture() -> Tensor:
        return faces.permute(0, 3, 1, 2).half() / 127.5 - 1

    def to_bytes(picture: Tensor) -> Tensor:
        scaled = ((picture + 1) * 127.5).round().clamp(0, 255)
        return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    z = _latent(preset)
    vae = model.vae
    return [
        _stage("model", "encoder", [vae.encoder, vae.quant_conv], trace(lambda: model.encode(to_picture()))),
        _stage("model", "adapter", [model.adapter], trace(lambda: model.adapter(z))),
        _stage("model", "unet", [model.unet], trace(lambda: model.denoise(z))),
        _stage("model", "decoder", [vae.decoder, vae.post_quant_conv], trace(lambda: to_bytes(model.decode(z)))),
    ]  # fmt: skip


def _graph_stages(form: str, graph: RestorationGraph) -> list[Stage]:
    preset = graph.preset
    faces = torch.empty(1, preset.size, preset.size, 3, dtype=torch.uint8)
    z = _latent(preset)
    return [
        _stage(form, "encoder", [graph.encoder], trace(lambda: graph.encoder(faces))),
        _stage(form, "adapter", [graph.adapter], trace(lambda: graph.adapter(z))),
        _stage(form, "unet", [graph.unet], trace(lambda: graph.unet(z))),
        _stage(form, "decoder", [graph.decoder], trace(lambda: graph.to_bytes(graph.decoder(z)))),
    ]


def _latent(preset: Preset) -> Tensor:
    side = preset.size // (preset.patch * 2 ** (len(preset.vae_channels) - 1))
    z = torch.empty(1, preset.latent_channels, side, side, dtype=torch.half)
    return z.to(memory_format=torch.channels_last)


def _stage(form: str, stage: str, modules: list[nn.Module], counted: Trace) -> Stage:
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    return Stage(form, stage, parameters, counted.flops / 1e9, dict(counted.launches))
