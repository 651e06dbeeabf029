"""Renoising: the settings under which it is a known sampler."""

import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser
from assimilate.posterior.paths import VE, VP, Interpolant
from assimilate.posterior.predictors import Clean, Context, OnPath
from assimilate.posterior.samplers import Ancestral, Projected, Renoise
from dynamics.random import Streams


def step(sampler, path, clean, x, t=0.4, s=0.6, base=None):
    rng = Streams(5, 1, x.shape[1])
    t, s = (torch.tensor(v, dtype=x.dtype) for v in (t, s))
    return sampler.step(x, t, s, clean, None, path, Context(base), rng, False, 1)[0]


@pytest.fixture
def rows():
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(1, 6, 3, generator=rng, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("path", [VE(0.0, 20.0), VP(), Interpolant()], ids=lambda p: type(p).__name__)
def test_old_noise_alone_is_ddim(path, rows):
    x, mean, base = rows
    base = base if isinstance(path, Interpolant) else None
    ours = step(Renoise("given", fresh=0.0), path, Clean(mean), x, base=base)
    assert torch.allclose(ours, step(Ancestral(eta=0.0), path, Clean(mean), x, base=base))


def test_a_step_share_is_ddims_eta(rows):
    """`f = eta^2` per step: the same mean and the same standard deviation as DDIM."""
    x, mean, _ = rows
    path, eta = VE(0.0, 20.0), 0.7
    ours = step(Renoise("given", fresh=eta**2, per="step"), path, Clean(mean), x)
    assert torch.allclose(ours, step(Ancestral(eta=eta), path, Clean(mean), x))


def test_new_noise_alone_forgets_the_state(rows):
    x, mean, other = rows
    path = VE(0.0, 20.0)
    first = step(Renoise("given"), path, Clean(mean), x)
    assert torch.equal(first, step(Renoise("given"), path, Clean(mean), other))


def test_the_unguided_direction_carries_the_networks_own_noise(rows):
    x, mean, guided = rows
    path = VE(0.0, 20.0)
    clean = Clean(guided, unguided=Clean(mean))
    moved = step(Renoise("given", fresh=0.0, direction="unguided"), path, clean, x)
    now, then = (path.coefficients(torch.tensor(t, dtype=x.dtype), x).noise for t in (0.4, 0.6))
    assert torch.allclose(moved, guided + then / now * (x - mean))


def test_ve_without_a_smallest_level_ends_on_the_clean_state(rows):
    x, mean, _ = rows
    for sampler in (Renoise("given"), Renoise("given", fresh=0.3), Ancestral(), Ancestral(eta=0.0)):
        assert torch.allclose(step(sampler, VE(0.0, 20.0), Clean(mean), x, s=1.0), mean)


def test_a_gaussian_is_drawn_exactly_on_a_coarse_grid():
    """Drawing the clean state and noising it again leaves the marginal as it is."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    prior = GaussianDenoiser(torch.tensor([1.0, -1.0]).double(), covariance)
    n, path = 20_000, VE(0.0, 40.0)
    rng = Streams(1, 1, n)
    from dynamics.random import normal

    x = path.largest * normal(rng, (1, n, 2), dtype=torch.float64)
    drawn = Renoise()(OnPath(prior, path, largest=40.0), path, x, times=torch.tensor([0.0, 0.5, 0.8, 1.0]).double(),
                      event_dims=1, rng=rng).x[0]
    assert torch.allclose(torch.cov(drawn.T), covariance, atol=0.04)
    assert torch.allclose(drawn.mean(0), prior.mean, atol=5 / n**0.5)


def test_a_projection_follows_every_step(rows):
    x, mean, _ = rows
    seen = []

    def onto_zero(state, s, path, rng):
        seen.append(float(s))
        return torch.zeros_like(state)

    assert float(step(Projected(Ancestral(), onto_zero), VE(0.0, 20.0), Clean(mean), x).abs().max()) == 0.0
    kept = step(Projected(Ancestral(), onto_zero, last=False), VE(0.0, 20.0), Clean(mean), x, s=1.0)
    assert torch.allclose(kept, mean)
    assert seen == [0.6]


def test_wrong_settings_are_refused():
    for settings in ({"fresh": 1.5}, {"clean": "mean"}, {"per": "image"}, {"direction": "back"}):
        with pytest.raises(ValueError, match="expected"):
            Renoise(**settings)
    with pytest.raises(ValueError, match="covariance"):
        step(Renoise(), VE(0.0, 20.0), Clean(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))
