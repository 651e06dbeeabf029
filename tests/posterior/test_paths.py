"""Paths: every parameterisation is the same clean mean, and the coefficients are what their symbols say."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.paths import VE, VP, FlowMatching, Interpolant
from assimilate.posterior.predictors import Context, GaussianPredictor, OnPath
from assimilate.posterior.time_grids import ratio_times, uniform_times

PATHS = [VP(), VE(), FlowMatching(), Interpolant(), Interpolant(power=2), Interpolant(scale=0.3)]
IDS = ["vp", "ve", "flow", "linear", "paper", "scaled"]


def gaussian(path, d=4):
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=rng, dtype=torch.float64)
    return GaussianPredictor(root @ root.T / d, path, torch.randn(d, generator=rng, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS, ids=IDS)
@pytest.mark.parametrize("kind", ["clean", "noise", "score", "velocity", "drift"])
def test_every_parameterisation_gives_the_same_clean_mean(path, kind):
    # T1: catches a wrong schedule, scale or time direction in any adapter.
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(50, 4, generator=rng, dtype=torch.float64)
    base = torch.randn(50, 4, generator=rng, dtype=torch.float64) if isinstance(path, Interpolant) else None
    for time in (0.07, 0.4, 0.93):
        t = torch.tensor(time, dtype=torch.float64)
        mean = gaussian(path)(x, t, Context(base=base)).mean
        output = path.from_mean(x, t, mean, kind, base)
        torch.testing.assert_close(path.to_mean(x, t, output, kind, base), mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=IDS)
@pytest.mark.parametrize("kind", ["clean", "noise", "score", "velocity", "drift"])
def test_regression_targets_average_to_the_parameterisation(path, kind):
    # E[target | x_t] is linear in x_t for a Gaussian; its slope from 200,000 draws must be that of `from_mean`.
    n, t = 200_000, torch.tensor(0.5, dtype=torch.float64)
    rng = torch.Generator().manual_seed(2)
    clean = 0.8 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    z = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    base = torch.full((n, 1), 0.4, dtype=torch.float64) if isinstance(path, Interpolant) else None
    x = path.sample(t, clean, base, z)
    target = path.target(t, clean, base, z, kind)
    predictor = GaussianPredictor(
        torch.tensor([[0.64]], dtype=torch.float64), path, torch.zeros(1, dtype=torch.float64)
    )
    expected = path.from_mean(x, t, predictor(x, t, Context(base=base)).mean, kind, base)
    # The residual is uncorrelated with x, so both moments vanish within 5 standard errors.
    residual = target - expected
    scale = float(residual.std()) / math.sqrt(n)
    assert abs(float(residual.mean())) < 5 * scale + 1e-12
    assert abs(float((residual * (x - x.mean()) / x.std()).mean())) < 5 * scale + 1e-12


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_coefficients_and_their_derivatives(path):
    x = torch.zeros(1, dtype=torch.float64)
    step = 1e-6
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time, dtype=torch.float64)
        c, ahead, behind = (path.coefficients(s, x) for s in (t, t + step, t - step))
        for value, slope in (("alpha", "d_alpha"), ("beta", "d_beta"), ("noise", "d_noise")):
            numeric = (getattr(ahead, value) - getattr(behind, value)) / (2 * step)
            torch.testing.assert_close(getattr(c, slope), numeric, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(c.snr, (c.beta / c.noise) ** 2)
        torch.testing.assert_close(c.pull, c.beta / c.noise**2)
        bend = (torch.log(ahead.noise**2 / ahead.beta) - torch.log(behind.noise**2 / behind.beta)) / (2 * step)
        torch.testing.assert_close(c.bend, bend, rtol=1e-5, atol=1e-7)
        # DESIGN rules 3 and 4: g_F^2 = 2 kappa - sigma^2 with kappa = noise^2 beta'/beta - noise noise' + sigma^2 / 2.
        kappa = c.noise**2 * c.d_beta / c.beta - c.noise * c.d_noise + c.sigma**2 / 2
        torch.testing.assert_close(c.foellmer, 2 * kappa - c.sigma**2)


def test_the_interpolant_agrees_with_its_closed_forms():
    t, x = torch.tensor([0.0, 0.3, 0.8], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    c = Interpolant(scale=0.7).coefficients(t, x)
    torch.testing.assert_close(c.foellmer[:, 0], 0.49 * (1 - t**2))
    # kappa = t sigma (beta' sigma - beta sigma') / beta, the exact gain of the drift that keeps its diffusion sigma.
    kappa = t * c.sigma[:, 0] * (c.sigma[:, 0] + 0.7 * t) / torch.where(t > 0, t, 1.0)
    torch.testing.assert_close((c.foellmer + c.sigma**2)[1:, 0] / 2, kappa[1:])
    assert torch.isfinite(c.bend).all()


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_time_inverts_the_ratio(path):
    unit = Interpolant(power=path.power) if isinstance(path, Interpolant) else path
    for ratio in (0.01, 0.3, 5.0, 40.0):
        assert unit.ratio(path.time(ratio)) == pytest.approx(ratio, rel=1e-6)


def test_one_denoiser_serves_every_path():
    covariance, mean = torch.eye(3, dtype=torch.float64) * 0.5, torch.ones(3, dtype=torch.float64)

    def denoiser(noisy, ratio, condition):
        from assimilate.posterior.predictors import Clean

        share = 0.5 / (0.5 + ratio**2)
        return Clean(mean + share * (noisy - mean))

    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for path in PATHS:
        base = torch.full_like(x, 0.2) if isinstance(path, Interpolant) else None
        for time in (0.2, 0.7):
            t = torch.tensor(time, dtype=torch.float64)
            exact = GaussianPredictor(covariance, path, mean)(x, t, Context(base=base)).mean
            torch.testing.assert_close(OnPath(denoiser, path)(x, t, Context(base=base)).mean, exact)


def test_time_grids():
    grid = ratio_times(Interpolant(), 12, largest=20.0, smallest=0.05)
    assert len(grid) == 13 and grid[0] == 0 and grid[-1] == 1 and bool((grid.diff() > 0).all())
    assert torch.equal(uniform_times(4), torch.linspace(0, 1, 5))
    with pytest.raises(ValueError, match="largest > smallest"):
        ratio_times(Interpolant(), 12, largest=0.01, smallest=0.05)
    with pytest.raises(ValueError, match="power is 3"):
        Interpolant(power=3)
