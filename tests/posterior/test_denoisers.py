"""Exact priors: their means and covariances against other ways of getting them."""

import math

import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser, MixtureDenoiser, StationaryDenoiser
from dynamics.random import Streams


def gaussian():
    rng = torch.Generator().manual_seed(2)
    root = torch.randn(5, 5, generator=rng, dtype=torch.float64)
    return GaussianDenoiser(torch.arange(5, dtype=torch.float64) / 3, root @ root.T / 5)


def field():
    rows, columns = 8, 10
    waves = torch.sqrt(
        (torch.fft.fftfreq(rows)[:, None] * rows) ** 2 + (torch.fft.rfftfreq(columns)[None] * columns) ** 2 + 1
    ).double()
    return StationaryDenoiser(waves[None] ** -2.5, columns, mean=0.4)


@pytest.mark.parametrize("prior", [gaussian(), field()], ids=["vector", "field"])
def test_a_mean_is_tweedies_gradient_and_a_covariance_its_jacobian(prior):
    """`m = x + rho^2 grad log p(x)` and `V = rho^2 dm/dx`."""
    rho = torch.tensor(0.6, dtype=torch.float64)
    x = torch.randn(prior.event_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clean = prior(x, rho)
    d = math.prod(prior.event_shape)
    jacobian = torch.func.jacrev(lambda v: prior(v, rho).mean)(x).reshape(d, d)
    basis = torch.eye(d, dtype=torch.float64).reshape(d, *prior.event_shape)
    covariance = clean.covariance.apply(basis).reshape(d, d)
    assert torch.allclose(covariance, rho**2 * jacobian, atol=1e-10)
    prior_covariance = torch.linalg.inv(torch.linalg.inv(covariance) - torch.eye(d, dtype=torch.float64) / rho**2)
    score = torch.linalg.solve(
        prior_covariance + rho**2 * torch.eye(d, dtype=torch.float64), (prior_mean(prior) - x).flatten()
    )
    assert torch.allclose(clean.mean.flatten(), x.flatten() + rho**2 * score, atol=1e-8)


def prior_mean(prior):
    return prior.mean if isinstance(prior.mean, torch.Tensor) else torch.full(prior.event_shape, prior.mean).double()


def test_draws_have_the_priors_moments():
    for prior in (gaussian(), field()):
        draws = prior.draw((1, 20_000), rng=Streams(3, 1, 20_000))[0].flatten(1)
        # Standard error of a variance over n draws: sqrt(2 / n), 1 %.
        spread = math.sqrt(float(draws.var(0).mean()))
        assert spread == pytest.approx(prior.spread, rel=0.02)
        error = (draws.mean(0) - prior_mean(prior).flatten()) / draws.std(0)
        assert float(error.abs().max()) < 5 / math.sqrt(20_000)


def test_a_mixture_of_one_is_the_gaussian_and_its_draws_have_its_weights():
    one = gaussian()
    mixture = MixtureDenoiser(torch.ones(1).double(), one.mean[None], one.covariance[None])
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rho = torch.tensor(0.8, dtype=torch.float64)
    assert torch.allclose(mixture(x, rho).mean, one(x, rho).mean, atol=1e-10)
    assert mixture.spread == pytest.approx(one.spread)
    two = MixtureDenoiser(
        torch.tensor([0.3, 0.7]).double(), torch.tensor([[-9.0], [9.0]]).double(), torch.ones(2, 1, 1).double()
    )
    share = (two.draw((1, 10_000), rng=Streams(0, 1, 10_000))[0, :, 0] < 0).double().mean()
    assert float(share) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 10_000))
