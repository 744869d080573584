"""Random weights for the folded graph alone, made on the device: for full-size benchmarks without diffusers."""

import torch
from torch import Tensor, nn

from fr_deploy.models.attention import SingleHeadAttention
from fr_deploy.models.fold import Affine, fold_one_step, fold_pixels_in, fold_pixels_out, fold_share
from fr_deploy.models.layers import Norm, TransposedUpsample, store
from fr_deploy.models.one_step import one_step
from fr_deploy.models.presets import Preset
from fr_deploy.models.restorer import Adapter, RestorationGraph

SCALING = 0.18215
"""Of Stable Diffusion's latents; diffusers' default."""


@torch.no_grad()
def random_graph(preset: Preset, device: torch.device) -> RestorationGraph:
    """A graph whose layers are drawn as torch initialises the unfolded ones, the same at every call.

    What folding scales is scaled: bytes for pixels, the latent, and the one-step formula, whose two terms cancel at
    t = 999. So the numbers stay in the ranges of a folded model, and a picture in 16 bits is as far from float32.

    Args:
        preset: sizes.
        device: where the weights are made; nothing is copied there.

    Returns:
        In float32, for inference.
    """
    torch.manual_seed(0)
    with device:
        graph = RestorationGraph(preset)
        for module in graph.modules():
            _draw(module)
        _fold_attention(graph)
        _fold_ends(graph)
    return graph.eval()


def _draw(module: nn.Module) -> None:
    """Norms as ones and zeros, codes from a normal distribution, all else uniform within 1 / sqrt(inputs)."""
    bound = 1.0
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, Norm):
            parameter.fill_(float(name == "weight"))
        elif isinstance(module, Adapter):
            # The table is what a 1x1 convolution makes of the codes: a third of their variance.
            parameter.normal_(std=1.0 if name == "codebook" else 3**-0.5)
        else:
            bound = _inputs(module, parameter) ** -0.5 if parameter.ndim > 1 else bound
            parameter.uniform_(-bound, bound)


def _inputs(module: nn.Module, weight: Tensor) -> int:
    """Values that an output is a sum of; a bias stands behind its weight."""
    if isinstance(module, TransposedUpsample):
        return 4 * weight.shape[0]  # [I, O, 4, 4] of stride 2: an output sees 2x2 pixels
    return weight[0].numel()


def _fold_attention(graph: RestorationGraph) -> None:
    """As wide as two projections drawn one by one, and 1 / sqrt(channels) in the query (`fold_single_head`)."""
    for layer in graph.modules():
        if isinstance(layer, SingleHeadAttention):
            store(layer.query, fold_share(_affine(layer.query), (3 * layer.width) ** -0.5))
            store(layer.value, fold_share(_affine(layer.value), 3**-0.5))


def _fold_ends(graph: RestorationGraph) -> None:
    encoder, decoder, adapter = graph.encoder, graph.decoder, graph.adapter
    store(encoder.conv_in, fold_pixels_in(_affine(encoder.conv_in)))
    store(encoder.conv_out, fold_share(_affine(encoder.conv_out), SCALING))
    store(adapter.conv_out, fold_share(_affine(adapter.conv_out), adapter.share))
    store(decoder.conv_out, fold_pixels_out(_affine(decoder.conv_out)))
    channels, step = graph.preset.latent_channels, one_step(graph.preset.timestep)
    drawn = torch.empty(channels, channels + 1, dtype=torch.float64).uniform_(-1, 1)
    post: Tensor = drawn * channels**-0.5
    quant = Affine(post[:, 1:, None, None], post[:, 0])
    last = graph.unet.one_step
    last.fold(*fold_one_step(_affine(last), quant, step.alpha, step.sigma, SCALING))


def _affine(layer: nn.Module) -> Affine:
    return Affine(layer.get_parameter("weight").double(), layer.get_parameter("bias").double())
