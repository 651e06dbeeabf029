"""EDM preconditioning against closed forms."""

from __future__ import annotations

import pytest
import torch

from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import FitSettings, fit, seeded
from assimilate.learning.networks import MLP, MLPSettings, UNet, UNetSettings
from assimilate.learning.objectives import Batch, Denoising, LogUniform
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import Context, OnPath


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_an_untrained_denoiser_is_the_exact_gaussian_one(sigma_data):
    network = MLP(MLPSettings(channels=2, outputs=4, noise_features=1, width=8))
    denoiser = EDMDenoiser(network, event_dims=1, sigma_data=sigma_data, variance=True).double()
    noisy = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = torch.logspace(-3, 2, 35, dtype=torch.float64).reshape(7, 5)
    clean = denoiser(noisy, ratio)
    rho = ratio[..., None]
    assert torch.allclose(clean.mean, sigma_data**2 / (sigma_data**2 + rho**2) * noisy, rtol=1e-12)
    expected = (1 / (1 / sigma_data**2 + 1 / rho**2)).expand_as(noisy)
    assert torch.allclose(clean.covariance.variance, expected, rtol=1e-12)


def test_along_principal_directions_an_untrained_denoiser_is_exact_for_any_gaussian():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    covariance = root @ root.T
    values, vectors = torch.linalg.eigh(covariance)
    network = MLP(MLPSettings(channels=4, outputs=4, noise_features=1, width=8))
    denoiser = EDMDenoiser(network, event_dims=1, sigma_data=values.sqrt(), basis=vectors).double()
    noisy = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    for rho in (0.1, 1.0, 10.0):
        gain = covariance @ torch.linalg.inv(covariance + rho**2 * torch.eye(4, dtype=torch.float64))
        assert torch.allclose(denoiser(noisy, torch.tensor(rho)).mean, noisy @ gain.T, atol=1e-6)
    # The same on a grid: the frame turns the channels of every cell.
    grid = UNet(UNetSettings(channels=4, outputs=4, widths=(4,)))
    fields = EDMDenoiser(grid, event_dims=3, sigma_data=values.sqrt(), basis=vectors).double()
    spread = noisy[:, :, None, None].expand(5, 4, 3, 2)
    expected = denoiser(noisy, torch.tensor(0.7)).mean[:, :, None, None].expand(5, 4, 3, 2)
    assert torch.allclose(fields(spread, torch.tensor(0.7)).mean, expected, atol=1e-6)
    with pytest.raises(ValueError, match="principal directions"):
        EDMDenoiser(network, event_dims=1, variance=True, basis=vectors)


def test_it_works_on_grids_and_with_one_level_for_all():
    network = UNet(UNetSettings(channels=1, outputs=2, context=1, widths=(4, 8)))
    denoiser = EDMDenoiser(network, event_dims=3, variance=True)
    x, condition = torch.ones(2, 3, 1, 8, 6), torch.ones(2, 3, 1, 8, 6)
    clean = denoiser(x, torch.tensor(1.0), condition)
    assert clean.mean.shape == x.shape
    assert torch.allclose(clean.mean, 0.5 * x)
    predictor = OnPath(lambda n, r, c: denoiser(n, r, condition), VE())
    assert predictor(x, torch.tensor(0.5), Context()).mean.shape == x.shape


def test_training_finds_the_posterior_of_a_correlated_gaussian():
    # x ~ N(0, C): E[x | x + rho z] = C (C + rho^2)^-1 (x + rho z), and its variance is diag(C - C (C + rho^2)^-1 C).
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    factor = torch.linalg.cholesky(covariance)

    def draw(count: int, rng: torch.Generator) -> Batch:
        return Batch(torch.randn(count, 2, generator=rng) @ factor.T)

    denoiser = seeded(
        0,
        lambda: EDMDenoiser(
            MLP(MLPSettings(channels=2, outputs=4, noise_features=1, width=32)), event_dims=1, variance=True
        ),
    )
    settings = FitSettings(steps=600, batch=512, learning_rate=5e-3, ema=0.99, held_out_every=0)
    trained = fit(denoiser, Denoising(LogUniform(0.1, 3.0), variance=0.5), draw, settings).model
    noisy = 1.2 * torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    for rho in (0.3, 1.0):
        gain = covariance @ torch.linalg.inv(covariance + rho**2 * torch.eye(2))
        clean = trained(noisy, torch.tensor(rho))
        posterior = torch.diagonal(covariance - gain @ covariance)
        # The untrained denoiser is off by 0.09 and 0.24 here in units of the state.
        assert float((clean.mean - noisy @ gain.T).square().mean().sqrt()) < 0.05
        assert torch.allclose(clean.covariance.variance.mean(0), posterior, rtol=0.1)
