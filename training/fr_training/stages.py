"""What each training stage optimises: its parameters and its loss."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_deploy.models.lafr import LafrModel
from fr_training.data import Batch
from fr_training.losses import (
    IdentityLoss,
    PatchDiscriminator,
    hinge_discriminator,
    hinge_generator,
)
from fr_training.perceptual import LpipsHed
from fr_training.presets import Recipe

ALIGN_WEIGHT = 0.1
KL_WEIGHT = 1e-6  # of the KL per pixel value, as in Stable Diffusion's VAE, whose losses are sums


@dataclass
class Losses:
    """The loss to descend, its parts for the log, and the image made (for the discriminator and samples)."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    image: Tensor | None = None


class Stage:
    """Base of the stages; `params` are trained, everything else is frozen."""

    def __init__(self, model: LafrModel, recipe: Recipe, device: torch.device) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        model.requires_grad_(False)
        self.params = [p.requires_grad_() for m in self.trained() for p in m.parameters()]
        self.perceptual = LpipsHed().to(device) if recipe.perceptual else None
        self.identity = IdentityLoss().to(device) if recipe.identity else None
        self.discriminator = PatchDiscriminator().to(device) if recipe.adversarial else None

    def trained(self) -> list[nn.Module]:
        """The modules this stage trains."""
        raise NotImplementedError

    def loss(self, batch: Batch, progress: float) -> Losses:
        """The loss of one batch; `progress` runs from 0 to 1 over the stage."""
        raise NotImplementedError

    def image_loss(self, image: Tensor, batch: Batch, progress: float) -> Losses:
        """L1 + MSE + w_p e lpips_hed + w_i identity + w_a hinge, the adversarial part from a quarter of the stage on.

        e is the batch's `emphasis`, a factor of each crop.

        L1 alone left rare colours wrong by 60 of 255 after 14,000 images; the square pulls on large errors.
        """
        clean = batch.clean
        parts = {"l1": F.l1_loss(image.float(), clean), "mse": F.mse_loss(image.float(), clean)}
        total = parts["l1"] + parts["mse"]
        if self.perceptual is not None:
            parts["lpips_hed"] = self._window_perceptual(image, batch)
            total = total + self.recipe.perceptual * parts["lpips_hed"]
        if self.identity is not None:
            parts["identity"] = self.identity(image, clean)
            total = total + self.recipe.identity * parts["identity"]
        if self.discriminator is not None and progress > 0.25:
            parts["adversarial"] = hinge_generator(self.discriminator(image))
            total = total + self.recipe.adversarial * parts["adversarial"]
        return Losses(total, parts, image)

    def _window_perceptual(self, image: Tensor, batch: Batch) -> Tensor:
        assert self.perceptual is not None
        size = self.recipe.window
        y, x = (int(torch.randint(0, n - size + 1, ())) for n in image.shape[2:])
        a, b = (t[..., y : y + size, x : x + size] / 2 + 0.5 for t in (image, batch.clean))
        with torch.no_grad():
            target = self.perceptual.features(b)
        return (
            self.perceptual.distance(self.perceptual.features(a), target) * batch.emphasis
        ).mean()

    def discriminator_loss(self, clean: Tensor, image: Tensor) -> Tensor:
        """Hinge loss of the discriminator on a clean batch and a made one."""
        assert self.discriminator is not None
        return hinge_discriminator(self.discriminator(clean), self.discriminator(image.detach()))

    def state(self) -> dict[str, Tensor]:
        """What must survive a restart besides weights and optimisers."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo `state`."""

    def finish(self, data: Iterator[Batch]) -> None:
        """Called once, with the averaged weights in the model, when the stage ends."""


class VaeStage(Stage):
    """Trains encoder and decoder to reproduce clean faces; ends by setting the latent scale."""

    def __init__(self, model: LafrModel, recipe: Recipe, device: torch.device) -> None:
        super().__init__(model, recipe, device)
        # A fresh posterior has standard deviation 1 and drowns the latent: after 4,800 images the code
        # still carried 1 nat a latent. Starting at exp(-3) = 0.05 lets the image loss lead.
        with torch.no_grad():
            model.vae.quant_conv.bias[model.preset.latent_channels :] = -6.0

    def trained(self) -> list[nn.Module]:
        """The VAE."""
        return [self.model.vae]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """Image loss plus KL."""
        model = self.model
        patches = F.pixel_unshuffle(batch.clean, model.preset.patch)
        posterior = model.vae.encode(patches).latent_dist
        made = model.vae.decode(posterior.sample(), return_dict=False)[0]
        losses = self.image_loss(F.pixel_shuffle(made, model.preset.patch), batch, progress)
        losses.parts["kl"] = posterior.kl().mean() / batch.clean[0].numel()
        losses.total = losses.total + KL_WEIGHT * losses.parts["kl"]
        return losses

    @torch.no_grad()
    def finish(self, data: Iterator[Batch]) -> None:
        """Set the scale that brings latents to unit variance, from 32 batches."""
        model = self.model
        clean = [next(data).clean.to(self.device) for _ in range(32)]
        spread = torch.stack([model.encode(image).float().std() / model.scaling for image in clean])
        model.vae.register_to_config(scaling_factor=float(1 / spread.mean()))


class AdapterStage(Stage):
    """LAFR stage 1: L1 between the aligned latent and the clean face's latent."""

    def __init__(self, model: LafrModel, recipe: Recipe, device: torch.device) -> None:
        super().__init__(model, recipe, device)
        self.used = torch.zeros(model.preset.codes, device=device)
        self.steps = 0

    def state(self) -> dict[str, Tensor]:
        """Code usage, step count and beta."""
        counts = torch.tensor([float(self.steps), self.model.adapter.beta])
        return {"used": self.used.cpu(), "counts": counts}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo `state`."""
        self.used = state["used"].to(self.device)
        self.steps, self.model.adapter.beta = int(state["counts"][0]), float(state["counts"][1])

    def trained(self) -> list[nn.Module]:
        """The adapter."""
        return [self.model.adapter]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """L1(z_aligned, z_HQ); the codebook is seeded from features at the start, dead codes while < 70 %."""
        model = self.model
        with torch.no_grad():
            z, target = model.encode(batch.degraded), model.encode(batch.clean)
        self._tend_codebook(z, progress)
        aligned, index = model.adapter.align(z)
        self.used.index_add_(0, index, torch.ones_like(index, dtype=self.used.dtype))
        loss = F.l1_loss(aligned.float(), target.float())
        share = torch.bincount(index, minlength=len(self.used)).float() / len(index)
        perplexity = (-(share * share.clamp_min(1e-12).log()).sum()).exp()
        before = F.l1_loss(z.float(), target.float())
        return Losses(loss, {"l1": loss, "l1_before": before, "perplexity": perplexity})

    @torch.no_grad()
    def _tend_codebook(self, z: Tensor, progress: float) -> None:
        """Ours: codes start as real features, and codes unused for 100 steps restart as such."""
        adapter = self.model.adapter
        if self.steps % 100 == 0 and progress < 0.7:
            features = adapter.features(z).float()
            dead = self.used == 0
            picks = torch.randint(len(features), (int(dead.sum()),), device=z.device)
            adapter.codebook.weight[dead] = features[picks].to(adapter.codebook.weight.dtype)
            spread = torch.cdist(features[:256], features[:256]).square().median()
            adapter.beta = float(8 / spread)
            self.used.zero_()
        self.steps += 1


class RestorerStage(Stage):
    """LAFR stage 2: the image loss through decoder, UNet and adapter.

    The paper freezes VAE and adapter and trains LoRA on a large UNet. A small model trained from nothing has no
    capacity to leave idle, so decoder and adapter are tuned too, and stage 1's loss stays in so that the codes
    keep their meaning (ours). The encoder is frozen: trained along, it inflated the latents six-fold within
    1,800 images, because stage 1's target moves with it. Against the clean latents of a frozen copy it still doubled
    them, past the codes: after 5,600 whole faces shuffled codes cost 9 % at `vqfr-v2`, where frozen they cost 68 %.
    """

    def __init__(self, model: LafrModel, recipe: Recipe, device: torch.device) -> None:
        super().__init__(model, recipe, device)
        if recipe.stage == "restorer":
            # eps = 0 makes the first step z0 = z / alpha: the decoder starts from a picture, not from noise.
            torch.nn.init.zeros_(model.unet.conv_out.weight)
            torch.nn.init.zeros_(model.unet.conv_out.bias)

    def trained(self) -> list[nn.Module]:
        """UNet, prompt, adapter and decoder."""
        model = self.model
        modules = [model.unet, model.adapter, model.vae.decoder, model.vae.post_quant_conv]
        return [*modules, nn.ParameterList([model.prompt])]

    def loss(self, batch: Batch, progress: float) -> Losses:
        """The image loss of the restored batch, plus stage 1's."""
        model = self.model
        with torch.no_grad():
            target, z = model.encode(batch.clean), model.encode(batch.degraded)
        aligned = model.adapter(z)
        losses = self.image_loss(model.decode(model.denoise(aligned)), batch, progress)
        losses.parts["align"] = F.l1_loss(aligned.float(), target.float())
        losses.total = losses.total + ALIGN_WEIGHT * losses.parts["align"]
        return losses


STAGES: dict[str, type[Stage]] = {
    "vae": VaeStage,
    "adapter": AdapterStage,
    "restorer": RestorerStage,
    "polish": RestorerStage,  # whole faces: group norms and attention see what they will see in use
    "finish": RestorerStage,  # the same with the weight on heavy damage and on lpips_hed
}
