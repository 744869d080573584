"""The LAFR model: the one-step formula, static time and prompt, the adapter, the restorer facade."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fr_deploy.errors import UsageError
from fr_deploy.models.lafr import LafrModel
from fr_deploy.models.one_step import one_step
from fr_deploy.models.presets import PRESETS
from fr_deploy.models.restorer import RestorationGraph
from fr_deploy.restorer import Restorer, SampledRestorer
from fr_deploy.runtime.torch_backend import TorchBackend

TOY = PRESETS["lafr-toy"]


@pytest.fixture(scope="module")
def model() -> LafrModel:
    torch.manual_seed(0)
    return LafrModel(TOY).eval().requires_grad_(False)


@pytest.mark.parametrize("timestep", [0, 249, 399, 999])
def test_one_step_is_the_schedulers_x0(timestep: int) -> None:
    torch.manual_seed(1)
    z, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    expected = scheduler.step(eps.double(), timestep, z.double()).pred_original_sample
    step = one_step(timestep)
    # fp32 rounding of z, sigma eps and their difference, each amplified by 1 / alpha.
    band = 4 * torch.finfo(torch.float32).eps * (z.abs().max() + eps.abs().max()) / step.alpha
    # diffusers keeps its betas in fp32: their rounding moves abar by up to 1000 ulps.
    band = band + 1000 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (step.x0(z, eps).double() - expected).abs().max() < band
    assert step.x0(z.half(), eps.half()).dtype == torch.float32


def test_one_step_constants_are_the_published_ones() -> None:
    step = one_step(999)
    assert math.isclose(step.sigma / step.alpha, 14.61, rel_tol=1e-3)
    assert math.isclose(one_step(399).alpha, 0.65275, rel_tol=1e-4)
    with pytest.raises(ValueError, match="0 to 999"):
        one_step(1000)


def test_adapter_modes() -> None:
    torch.manual_seed(0)
    adapter = LafrModel(TOY).adapter
    z = torch.randn(2, TOY.latent_channels, 5, 7, requires_grad=True)
    aligned, index = adapter.align(z)
    assert aligned.shape == z.shape
    assert index.shape == (2 * 5 * 7,)
    with torch.no_grad():  # the hard path without gradients gives the same values
        again, index_again = adapter.align(z)
    assert torch.equal(aligned, again)
    assert torch.equal(index, index_again)
    aligned.square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_papers_adapter_sees_only_codes() -> None:
    torch.manual_seed(0)
    adapter = LafrModel(TOY).adapter.requires_grad_(False)
    assert adapter.share == 1
    z = torch.randn(1, TOY.latent_channels, 4, 4)
    codes = torch.randn(16, TOY.code_dim)
    mapped = adapter.from_codes(z, codes)
    assert torch.equal(mapped, adapter.from_codes(torch.zeros_like(z), codes))
    adapter.share = 0.25  # ours: a path around the codebook
    assert torch.allclose(adapter.from_codes(z, codes), 0.75 * z + 0.25 * mapped, atol=1e-6)


def test_restorer_is_uint8_in_and_out_and_batch_does_not_matter(model: LafrModel) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    backend = TorchBackend(RestorationGraph.of(model))
    whole = Restorer(backend, "toy", batch=5)(faces)
    single = Restorer(backend, "toy", batch=1)(faces)
    assert whole.shape == faces.shape
    assert whole.dtype == np.uint8
    assert np.abs(whole.astype(int) - single).max() <= 1
    assert Restorer(backend, "toy")(faces[:0]).shape == (0, 64, 64, 3)
    with pytest.raises(UsageError, match="expected uint8"):
        Restorer(backend, "toy")(faces[:, :32])


def test_sampled_latents_are_seeded(model: LafrModel) -> None:
    faces = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    first, again, other = (SampledRestorer(model, "toy", seed=s)(faces) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    one_by_one = SampledRestorer(model, "toy", seed=1, batch=1)(faces)
    assert np.abs(first.astype(int) - one_by_one).max() <= 1
