"""Window priors: shapes, round trips, and the exact answer on a linear-Gaussian chain."""

from __future__ import annotations

import pytest
import torch

from assimilate.learning.checkpoint import save_checkpoint
from assimilate.learning.fit import FitSettings
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.samples import Simulation
from assimilate.learning.window_fit import WindowFit, fit_window
from assimilate.posterior.predictors import Context
from assimilate.posterior.windows import WindowPrior
from dynamics.linear import LinearGaussian

COEFFICIENT, LENGTH = 0.9, 5


@pytest.fixture(scope="module")
def trained():
    settings = WindowFit(
        simulation=Simulation(trajectories=2000, states=25, spinup=40, seed=1),
        length=LENGTH,
        network={"width": 16},
        training=FitSettings(steps=200, batch=512, learning_rate=2e-3, ema=0.98, held_out_every=100),
        smallest=0.05,
        largest=10.0,
    )
    return fit_window(LinearGaussian.scalar(COEFFICIENT, 1.0), settings)


def test_the_clean_mean_of_an_autoregressive_chain_is_exact(trained):
    # Windows are N(0, C), C_ij = 0.9^|i - j| in standardised units, so E[x | x + rho z] = C (C + rho^2)^-1 (x + rho z).
    lags = torch.arange(LENGTH)
    covariance = COEFFICIENT ** (lags[:, None] - lags[None, :]).abs().float()
    rng = torch.Generator().manual_seed(0)
    clean = torch.randn(2000, LENGTH, generator=rng) @ torch.linalg.cholesky(covariance).T
    for rho in (0.2, 1.0, 5.0):
        noisy = clean + rho * torch.randn(2000, LENGTH, generator=rng)
        exact = noisy @ (covariance @ torch.linalg.inv(covariance + rho**2 * torch.eye(LENGTH))).T
        found = trained(noisy[..., None], torch.tensor(rho)).mean[..., 0]
        # 2,000 trajectories of 2.5 independent values know C to 2 %; a posterior spread of at most 1 bounds the rest.
        assert float((found - exact).square().mean().sqrt()) < 0.05


def test_it_is_a_window_prior_that_survives_a_file(trained, tmp_path):
    prior = load_pretrained(save_checkpoint(trained.to_checkpoint(), tmp_path / "w.safetensors"))
    assert isinstance(prior, WindowPrior) and prior.order == 2 and prior.dt == 1.0
    x = torch.randn(3, 4, LENGTH, 1, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(prior.encode(x), trained.to_model(x), atol=1e-6)
    assert torch.allclose(prior.decode(prior.encode(x)), x, atol=1e-5)
    t = torch.tensor(0.6)
    ratio = prior.path.coefficients(t, x).noise.reshape(())
    assert torch.allclose(prior.predictor(x, t, Context()).mean, trained(x, ratio).mean, atol=1e-5)
    longer = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(1))
    assert prior.trajectories()(longer, t, Context()).mean.shape == longer.shape
