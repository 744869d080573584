"""Losses beyond pixels: a patch discriminator (hinge; ours, HDRFace eq 13 uses softplus) and identity."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fr_deploy.faces.identity import load_dlib_resnet


class PatchDiscriminator(nn.Module):
    """Judges 30 px neighbourhoods: [B, 3, H, W] in [-1, 1] -> [B, 1, H/8, W/8]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(i, o, 4, 2, 1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, image: Tensor) -> Tensor:
        """Higher = looks more like a photo."""
        return self.layers(image)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake))."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean D(fake)."""
    return -fake.float().mean()


class IdentityLoss(nn.Module):
    """1 - cosine of dlib embeddings (HDRFace eq 14 uses ArcFace, whose weights no package carries).

    The network also gives the score deg_dlib, so for a model trained with this loss that score is no longer
    independent evidence.
    """

    # The part of a 512 px FFHQ crop that becomes dlib's chip (`fr_deploy.faces.identity.FFHQ_TO_CHIP`).
    ROWS, COLUMNS, CHIP = slice(137, 482), slice(87, 433), 150

    def __init__(self) -> None:
        super().__init__()
        self.network = load_dlib_resnet()

    def forward(self, image: Tensor, clean: Tensor) -> Tensor:
        """Mean over [B, 3, 512, 512] RGB in [-1, 1], FFHQ-aligned; computed in float32."""
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                target = self.network(self._chip(clean))
            return 1 - F.cosine_similarity(self.network(self._chip(image)), target).mean()

    def _chip(self, image: Tensor) -> Tensor:
        part = (image[:, :, self.ROWS, self.COLUMNS].float() + 1) * 127.5
        return F.interpolate(part, size=(self.CHIP, self.CHIP), mode="bilinear", antialias=True)
