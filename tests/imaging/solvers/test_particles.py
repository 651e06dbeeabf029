"""Twisted diffusion and ensemble Kalman guidance: exact posteriors, evidence, independence of the samples."""

from __future__ import annotations

import pytest
import torch

from benchmarks.scorecard.problems import gaussian_problem, mixture_problem
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.solvers import find_solver
from imaging.solvers.base import Task
from imaging.solvers.particles import draw_members
from observations.base import ObservationOperator
from observations.heavy_tails import Laplace
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Mask, Matrix

SHORT = {
    "tds": {"steps": 15, "particles": 30},
    "enkg": {"steps": 10, "particles": 30, "ode_steps": 4},
}


class Cubic(ObservationOperator):
    """A nonlinear operator that nobody can differentiate."""

    space = (6,)

    def forward(self, x):
        return x.detach()[..., :3] ** 3 + x.detach()[..., :3]


def task(problem=None, operator=None, y=None, noise=None):
    problem = problem or gaussian_problem()
    likelihood = Likelihood(operator or problem.likelihood.operator, noise or problem.likelihood.noise)
    return Task(problem.prior, likelihood, problem.y if y is None else y, dtype=torch.float64)


def moments(problem, x):
    """Error of the mean in posterior standard deviations (root mean square) and the ratio of traces."""
    weights, means, covariances = problem.posterior()
    mean = weights @ means
    total = torch.einsum("k,kij->ij", weights, covariances + (means - mean)[:, :, None] * (means - mean)[:, None])
    error = ((x.mean(0) - mean) / total.diagonal().sqrt()).square().mean().sqrt()
    return {"mean": float(error), "trace": float(torch.cov(x.T).trace() / total.trace())}


def first_mode(problem, x):
    """Share of samples nearest to the first mode."""
    return float((torch.cdist(x, problem.means).argmin(1) == 0).double().mean())


def log_evidence(problem):
    a = problem.likelihood.operator.matrix()
    noise = problem.likelihood.noise.variance(len(a), dtype=a.dtype).diag()
    law = torch.distributions.MultivariateNormal(problem.means @ a.mT, a @ problem.covariances @ a.mT + noise)
    return float(torch.logsumexp(law.log_prob(problem.y) + problem.weights.log(), 0))


def test_members_are_drawn_by_weight():
    members = torch.arange(4.0).reshape(1, 4, 1).expand(2, 4, 1)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0]])
    drawn = draw_members(members, weights.log(), Streams(0, 2, 20_000))
    assert drawn.shape == (2, 20_000, 1)
    shares = torch.stack([(drawn[0, :, 0] == k).double().mean() for k in range(4)])
    # Standard error at most 0.0035.
    assert float((shares - weights[0]).abs().max()) < 0.015
    assert bool((drawn[1] == 2).all())
    torch.testing.assert_close(draw_members(members, weights.log(), Streams(0, 2, 1)), drawn[:, :1])


@pytest.mark.parametrize("name", SHORT)
def test_the_ensemble_does_not_depend_on_the_samples(name):
    y = gaussian_problem().y + torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    solver = find_solver(name, **SHORT[name])
    many = solver(task(y=y), rng=Streams(4, 2, 16)).samples
    torch.testing.assert_close(solver(task(y=y[:1]), rng=Streams(4, 1, 1)).samples, many[:1, :1], rtol=1e-7, atol=1e-7)
    turned = solver(task(y=y[[1, 0]]), rng=Streams(4, (1, 0), 3)).samples
    torch.testing.assert_close(turned, many[[1, 0], :3], rtol=1e-7, atol=1e-7)
    assert solver(task(y=y[:1]), rng=Streams(4, 1, 50)).samples.shape == (1, 50, 6)


@pytest.mark.parametrize("name", SHORT)
def test_edges(name):
    # T11, and missing values: a mask with one is a mask without it (up to which numbers the noise of y is drawn with).
    solver = find_solver(name, **SHORT[name])
    solver(task(operator=Matrix((6,), torch.zeros(3, 6))), rng=Streams(0, 1, 5))
    solver(task(noise=GaussianNoise(1e-3)), rng=Streams(0, 1, 5))
    y = torch.tensor([0.5, torch.nan], dtype=torch.float64)
    gap = solver(task(operator=Mask((6,), [0, 2]), y=y), rng=Streams(1, 1, 4)).samples
    fewer = solver(task(operator=Mask((6,), [0]), y=y[:1]), rng=Streams(1, 1, 4)).samples
    if name == "tds":
        torch.testing.assert_close(gap, fewer, rtol=1e-6, atol=1e-6)
    with pytest.raises(CapabilityError, match="Gaussian"):
        solver(task(noise=Laplace(0.2)), rng=Streams(0, 1, 2))


def test_twisted_particles_tend_to_the_exact_posterior():
    # The share of the first mode: eight ensembles of 500, whose own scatter says how exact their mean is. Resampling
    # makes it several times that of independent draws. Evidence likewise, and it is the average of the evidences, not
    # of their logarithms, that has no bias.
    problem = mixture_problem()
    experiments = 8
    solution = find_solver("tds", particles=500)(task(problem), rng=Streams(0, experiments, 500))
    shares = torch.tensor([first_mode(problem, x) for x in solution.samples])
    exact = float(problem.posterior()[0][0])
    error = float(shares.std()) / experiments**0.5
    assert error < 0.04
    assert abs(float(shares.mean()) - exact) < 3 * error
    ratio = (solution.log_evidence - log_evidence(problem)).exp()
    assert abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / experiments**0.5 + 0.02


def test_twisted_particles_on_gaussians():
    for isotropic in (False, True):
        problem = gaussian_problem(isotropic=isotropic)
        solution = find_solver("tds", particles=1500)(task(problem), rng=Streams(0, 1, 1500))
        found = moments(problem, solution.samples[0])
        # Drawing 1500 of 1500 by weight doubles the variance, resampling adds to it: about 0.04 and 0.03.
        assert found["mean"] < 0.1
        assert abs(found["trace"] - 1) < 0.1
        assert abs(float(solution.log_evidence) - log_evidence(problem)) < 0.15


def test_any_noise_has_a_twist():
    found = find_solver("tds", twist="dps", steps=20, particles=100)(task(noise=Laplace(0.2)), rng=Streams(0, 1, 10))
    assert found.samples.shape == (1, 10, 6)


def test_tempered_ensemble_guidance_is_calibrated():
    problem = gaussian_problem()
    found = moments(
        problem, find_solver("enkg", particles=800, steps=60)(task(problem), rng=Streams(0, 1, 800)).samples[0]
    )
    # Sampling error of 800 members drawn with replacement: 0.05 for the mean, 0.045 for the trace.
    assert found["mean"] < 0.15
    assert abs(found["trace"] - 1) < 0.1
    # The published step collapses onto a fit, and not onto the posterior mean: recorded.
    published = find_solver("enkg", rule="published", particles=300, steps=40)(task(problem), rng=Streams(0, 1, 300))
    worse = moments(problem, published.samples[0])
    assert worse["mean"] > 1
    assert worse["trace"] < 0.3


def test_no_derivative_of_the_operator_is_asked_for():
    y = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    x = find_solver("enkg", particles=200, steps=30)(task(operator=Cubic(), y=y), rng=Streams(0, 1, 200)).samples
    prior = gaussian_problem().prior.draw((1, 200), rng=Streams(1, 1, 200))
    likelihood = Likelihood(Cubic(), GaussianNoise(0.2))
    fit, before = (float((likelihood.residual(y, state) ** 2).mean()) for state in (x, prior))
    assert fit < 0.5 * before


def test_settings_are_checked():
    for name, bad in (("tds", {"particles": 1}), ("tds", {"twist": "none"}), ("enkg", {"rule": "other"})):
        with pytest.raises(ValueError, match=next(iter(bad))):
            find_solver(name, **bad)
