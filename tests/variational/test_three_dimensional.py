"""3D-Var against the Gaussian analysis written out, the EnKF's gain, and what every filter promises."""

import math

import pytest
import torch

from assimilate.filters.base import Filter
from assimilate.filters.check import check_filter
from assimilate.variational.background import DenseBackground, dense
from assimilate.variational.hybrid import Hybrid
from assimilate.variational.minimise import LBFGS, GaussNewton
from assimilate.variational.spectral import SpectralBackground
from assimilate.variational.three_dimensional import ThreeDVar
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import Arctan, GaussianNoise, Identity, Likelihood, Mask, Observation, StudentT

CELLS = 6
RING = LinearGaussian.ring(CELLS)
STATIC = SpectralBackground(RING.space, 0.8, 1.5)
SHARP = GaussNewton(accuracy=1e-9, tolerance=1e-9)
SEEN = Mask(RING.space, torch.arange(0, CELLS, 2))
FULL = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.4, 0.1], [0.0, 0.1, 0.2]])


def gaussian_analysis(guess, matrix, observation, experiment=0):
    """Mean, covariance and log evidence for one experiment; guess is `(d,)`."""
    y = observation.y.reshape(-1, observation.y.shape[-1])
    y = y[experiment if len(y) > 1 else 0]
    kept = ~torch.isnan(y)
    h = observation.likelihood.operator.matrix()[kept]
    r = observation.likelihood.noise.covariance_matrix(len(y), dtype=torch.float64)[kept][:, kept]
    block = h @ matrix @ h.mT + r
    gain = matrix @ h.mT @ torch.linalg.inv(block)
    density = torch.distributions.MultivariateNormal(h @ guess, block).log_prob(y[kept])
    return guess + gain @ (y[kept] - h @ guess), matrix - gain @ h @ matrix, density


def observed(noise=None, missing=True):
    y = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if missing:
        y[1, 0, 1] = math.nan
    return Observation(Likelihood(SEEN, GaussianNoise(covariance=FULL) if noise is None else noise), y)


@pytest.mark.parametrize("spread", ["draws", "perturbed"])
def test_contract(spread):
    check_filter(lambda d: ThreeDVar(d, SpectralBackground(d.space, 1.0, 1.5), spread=spread))
    assert isinstance(ThreeDVar(RING, STATIC), Filter)


@pytest.mark.parametrize("minimiser", [SHARP, LBFGS(200, tolerance=1e-9)], ids=["newton", "lbfgs"])
def test_analysis_is_optimal_interpolation_with_this_background(minimiser):
    n = 4000
    method = ThreeDVar(RING, STATIC, minimiser=minimiser, evidence=True)
    rng = Streams(1, 2, n)
    state = method.init(RING.prior((2, n), rng=rng, dtype=torch.float64))
    guess = RING.step(state.control, 0.0, rng=None)[:, 0, 0]
    after, info = method.step(state, observed(), 1.0, rng=rng.at(1))
    for e in range(2):
        mean, covariance, evidence = gaussian_analysis(guess[e], dense(STATIC), observed(), e)
        torch.testing.assert_close(after.control[e, 0, 0], mean, atol=1e-8, rtol=0)
        torch.testing.assert_close(info.log_evidence[e], evidence)
        # Members are centred, and have both covariances up to sampling.
        torch.testing.assert_close(after.members[e].mean(0)[0], mean, atol=1e-5, rtol=0)
        for members, expected in ((after.members, covariance), (info.background, dense(STATIC))):
            scale = expected.diagonal().sqrt()
            error = (torch.cov(members[e, :, 0].mT) - expected).abs() / torch.outer(scale, scale)
            assert (error < 5 * (2 / n) ** 0.5).all()
    assert (after.gradient_norm <= 1e-8).all()


def test_the_cycle_does_not_depend_on_the_number_of_members():
    runs = []
    for n in (1, 7):
        method = ThreeDVar(Lorenz63(), DenseBackground(Lorenz63().space, 2 * torch.eye(3)))
        likelihood = Likelihood(Identity(Lorenz63().space), GaussianNoise(std=1.0))
        state = method.init(torch.ones(1, n, 3, dtype=torch.float64))
        for k in range(5):
            y = torch.tensor([1.0, 2.0, 20.0 + k], dtype=torch.float64)
            state, _ = method.step(state, Observation(likelihood, y), 0.025 * (k + 1), rng=Streams(0, 1, n).at(k))
        runs.append(state)
    torch.testing.assert_close(runs[0].control, runs[1].control, atol=1e-12, rtol=0)
    torch.testing.assert_close(runs[0].members, runs[0].control)
    torch.testing.assert_close(runs[1].members.mean(1, keepdim=True), runs[1].control, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_hybrid_uses_the_blended_gain(weight):
    """Perturbations are centred: the mean moves as one Kalman update with the hybrid covariance says."""
    n = 8
    method = ThreeDVar(RING, Hybrid(STATIC, weight), spread="perturbed", minimiser=SHARP)
    rng = Streams(2, 2, n)
    state = method.init(RING.prior((2, n), rng=rng, dtype=torch.float64))
    after, info = method.step(state, observed(), 1.0, rng=rng.at(1))
    for e in range(2):
        background = info.background[e, :, 0]
        matrix = (1 - weight) * dense(STATIC) + weight * torch.cov(background.mT)
        mean, _, _ = gaussian_analysis(background.mean(0), matrix, observed(), e)
        torch.testing.assert_close(after.members[e].mean(0)[0], mean, atol=1e-7, rtol=0)
        torch.testing.assert_close(after.control[e, 0, 0], mean, atol=1e-7, rtol=0)


def test_perturbed_members_have_the_posterior_spread():
    """Members that differ by draws of B, as in a cycle at rest: RTO, here for one analysis."""
    n = 4000
    method = ThreeDVar(RING, STATIC, spread="perturbed")
    shifts = STATIC.root(torch.randn(2, n, CELLS, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    state = method.init(shifts)
    once, _ = method.step(state, observed(missing=False), 0.0, rng=Streams(4, 2, n))
    _, covariance, _ = gaussian_analysis(torch.zeros(CELLS, dtype=torch.float64), dense(STATIC), observed())
    scale = covariance.diagonal().sqrt()
    error = (torch.cov(once.members[0, :, 0].mT) - covariance).abs() / torch.outer(scale, scale)
    assert (error < 5 * (2 / n) ** 0.5).all()


def test_limits_of_the_noise():
    method = ThreeDVar(RING, STATIC, minimiser=SHARP)
    rng = Streams(5, 2, 3)
    state = method.init(RING.prior((2, 3), rng=rng, dtype=torch.float64))
    free, _ = method.step(state, None, 1.0, rng=rng.at(1))
    vague, _ = method.step(state, observed(GaussianNoise(std=1e7)), 1.0, rng=rng.at(1))
    torch.testing.assert_close(vague.members, free.members, atol=1e-6, rtol=0)
    sharp = observed(GaussianNoise(std=1e-4), missing=False)
    near, _ = method.step(state, sharp, 1.0, rng=rng.at(1))
    torch.testing.assert_close(SEEN(near.control), sharp.y, atol=1e-5, rtol=0)


def test_climate_as_first_guess_forgets():
    background = DenseBackground(RING.space, dense(STATIC), mean=torch.full((1, CELLS), 2.0))
    method = ThreeDVar(RING, background, first_guess="climate", minimiser=SHARP)
    rng = Streams(6, 2, 2)
    for start in (0.0, 5.0):
        state = method.init(start + torch.zeros(2, 2, 1, CELLS, dtype=torch.float64))
        after, _ = method.step(state, observed(), 3.0, rng=rng.at(1))
        guess = torch.full((CELLS,), 2.0, dtype=torch.float64)
        mean, _, _ = gaussian_analysis(guess, dense(STATIC), observed(), 0)
        torch.testing.assert_close(after.control[0, 0, 0], mean, atol=1e-7, rtol=0)


def test_curved_operators_and_heavy_tails_find_the_mode():
    """Against a grid of the one-dimensional posterior."""
    scalar = LinearGaussian.scalar(1.0, 0.1)
    background = DenseBackground(scalar.space, torch.tensor([[4.0]]))
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    cases = [
        (Arctan(scalar.space), GaussianNoise(std=0.2), GaussNewton(tolerance=1e-6)),
        (Arctan(scalar.space), GaussianNoise(std=0.2), LBFGS(tolerance=1e-6)),
        (Identity(scalar.space), StudentT(3.0, 0.3), LBFGS(tolerance=1e-6)),
    ]
    for operator, noise, minimiser in cases:
        likelihood = Likelihood(operator, noise)
        y = torch.tensor([1.2], dtype=torch.float64)
        method = ThreeDVar(scalar, background, minimiser=minimiser)
        state = method.init(torch.full((1, 1, 1), 0.3, dtype=torch.float64))
        after, _ = method.step(state, Observation(likelihood, y), 0.0, rng=Streams(0, 1, 1))
        log_density = likelihood.log_prob(y, grid[:, None]) - (grid - 0.3) ** 2 / 8
        assert abs(float(after.control) - float(grid[log_density.argmax()])) < 2e-4


def test_what_it_refuses():
    with pytest.raises(ValueError, match="perturbed"):
        ThreeDVar(RING, Hybrid(STATIC))
    with pytest.raises(ValueError, match="draws, perturbed"):
        ThreeDVar(RING, STATIC, spread="many")
    with pytest.raises(ValueError, match="mean"):
        ThreeDVar(RING, STATIC, first_guess="climate")
    state = ThreeDVar(RING, STATIC).init(torch.zeros(1, 2, 1, CELLS))
    heavy = Observation(Likelihood(SEEN, StudentT(3.0)), torch.zeros(3))
    with pytest.raises(CapabilityError, match="LBFGS"):
        ThreeDVar(RING, STATIC).step(state, heavy, 1.0, rng=Streams(0, 1, 2))
    with pytest.raises(CapabilityError, match="Gaussian noise"):
        ThreeDVar(RING, STATIC, spread="perturbed").step(state, heavy, 1.0, rng=Streams(0, 1, 2))
