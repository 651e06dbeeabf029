"""Solvers that enforce, step or evaluate: invariances, missing values, recorded biases."""

from __future__ import annotations

import pytest
import torch

from benchmarks.scorecard.problems import gaussian_problem
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.solvers import find_solver
from imaging.solvers.base import Task
from observations.base import LinearOperator, ObservationOperator
from observations.heavy_tails import Laplace
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Mask, Matrix

SHORT = {
    "mcg": {"steps": 12},
    "ilvr": {"steps": 12},
    "score-mri": {"steps": 12},
    "ccdf": {"steps": 12},
    "smld": {"steps": 6, "inner": 3},
    "noised-measurements": {"steps": 12},
    "zero-order": {"steps": 12, "draws": 20},
    "ddnm": {"steps": 12},
    "ddrm": {"steps": 12},
}


class Hidden(LinearOperator):
    """A matrix without an SVD."""

    def __init__(self, array):
        self.space, self.array = (6,), array

    def forward(self, x):
        return x @ self.array.mT.to(x)


class Square(ObservationOperator):
    """A nonlinear operator."""

    space = (6,)

    def forward(self, x):
        return x[..., :3] ** 2


def moments(problem, x):
    """Error of the mean in posterior standard deviations (root mean square) and the ratio of traces."""
    weights, means, covariances = problem.posterior()
    mean = weights @ means
    total = torch.einsum("k,kij->ij", weights, covariances + (means - mean)[:, :, None] * (means - mean)[:, None])
    error = ((x.mean(0) - mean) / total.diagonal().sqrt()).square().mean().sqrt()
    return {"mean": float(error), "trace": float(torch.cov(x.T).trace() / total.trace())}


def task(operator=None, y=None, noise=None, dtype=torch.float64):
    problem = gaussian_problem()
    likelihood = Likelihood(operator or problem.likelihood.operator, noise or GaussianNoise(0.2))
    return Task(problem.prior, likelihood, problem.y if y is None else y, dtype=dtype)


def draw(name, given, rng, **settings):
    return find_solver(name, **(SHORT.get(name, {}) | settings))(given, rng=rng).samples


@pytest.mark.parametrize("name", SHORT)
def test_a_sample_does_not_depend_on_the_others(name):
    # T4: 1 or 16 samples, other measurements beside it, their order; another seed is another sample.
    y = gaussian_problem().y + torch.tensor([0.0, 3.0, -2.0]).reshape(3, 1, 1)
    many = draw(name, task(y=y), Streams(4, 3, 16))
    one = draw(name, task(y=y[:1]), Streams(4, 1, 1))
    torch.testing.assert_close(many[:1, :1], one, rtol=1e-7, atol=1e-7)
    turned = draw(name, task(y=y[[2, 0, 1]]), Streams(4, (2, 0, 1), 2))
    torch.testing.assert_close(turned, many[[2, 0, 1], :2], rtol=1e-7, atol=1e-7)
    assert torch.equal(draw(name, task(y=y), Streams(4, 3, 16)), many)
    assert float((draw(name, task(y=y[:1]), Streams(5, 1, 1)) - one).abs().min()) > 1e-6


@pytest.mark.parametrize("name", SHORT)
def test_tiny_noise_and_a_blind_operator_stay_finite(name):
    # T11. The solver itself raises on a sample that is not finite; prior and measurement bound the rest.
    problem = gaussian_problem()
    draw(name, task(noise=GaussianNoise(1e-3)), Streams(0, 1, 20))
    kind = {"zeta": 0.3} if name == "mcg" else {}
    blind = draw(name, task(Matrix((6,), torch.zeros(3, 6))), Streams(0, 1, 400), **kind)
    if name in ("smld", "score-mri", "noised-measurements"):
        # Few Langevin steps have not forgotten the first level, 40, nor the corrections' random lengths.
        assert float(blind.abs().max()) < 250
        return
    # Nothing seen: the prior's own mean and spread, up to what 12 steps do to it.
    spread = blind[0].std(0) / problem.covariances[0].diagonal().sqrt()
    assert 0.5 < float(spread.min()) < float(spread.max()) < 1.3
    assert float((blind[0].mean(0) - problem.means[0]).abs().max()) < 0.2


@pytest.mark.parametrize("name", SHORT)
def test_missing_values_are_left_out(name):
    # A mask with a missing value is a mask without it.
    y = torch.tensor([0.5, torch.nan, -0.3], dtype=torch.float64)
    gap = draw(name, task(Mask((6,), [0, 2, 5]), y), Streams(1, 1, 4))
    fewer = draw(name, task(Mask((6,), [0, 5]), y[[0, 2]]), Streams(1, 1, 4))
    torch.testing.assert_close(gap, fewer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SHORT)
def test_what_a_solver_needs(name):
    solver = find_solver(name, **SHORT[name])
    rng = Streams(0, 1, 2)
    needs = solver.needs
    hidden = task(Hidden(gaussian_problem().likelihood.operator.matrix()))
    if "svd" in needs:
        with pytest.raises(CapabilityError, match="SVD"):
            solver(hidden, rng=rng)
    else:
        assert solver(hidden, rng=rng).samples.shape == (1, 2, 6)
    if "linear" in needs or "svd" in needs:
        with pytest.raises(CapabilityError, match="linear"):
            solver(task(Square()), rng=rng)
    if "gaussian" in needs or "white" in needs:
        with pytest.raises(CapabilityError, match="Gaussian"):
            solver(task(noise=Laplace(0.2)), rng=rng)
    assert solver(task(dtype=torch.float32), rng=rng).samples.dtype == torch.float32
    assert solver.reference.startswith(("Chung", "Choi", "Song", "Zheng", "Wang", "Kawar"))


@pytest.mark.parametrize("name", ["mcg", "ilvr", "score-mri"])
def test_hard_constraints_hold_at_the_end(name):
    # The last state is projected, after the displacement of MCG's guidance too: y is met, its noise included. The VP
    # path of MCG ends with a noise of 1e-3, times 6 standard deviations; steps of Score-MRI halve what equal singular
    # values would take away at once.
    array = torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    given = task(Matrix((6,), 2 * array))
    x = draw(name, given, Streams(0, 1, 8))
    limit = 2 * 6 * 1e-3 if name == "mcg" else 1e-3
    assert float((given.y - 2 * x @ array.T).abs().max()) < limit


def test_evaluations_are_counted():
    rng = Streams(0, 1, 2)
    assert find_solver("ilvr", steps=12)(task(), rng=rng).evaluations == 12
    # A correction at every level but the last, which is clean.
    assert find_solver("score-mri", steps=12)(task(), rng=rng).evaluations == 23
    assert find_solver("score-mri", steps=12, corrections=2)(task(), rng=rng).evaluations == 34
    assert find_solver("smld", steps=6, inner=3)(task(), rng=rng).evaluations == 19


# Measured with 2000 samples; bands are about four times the sampling error, 0.09 for the mean and for the trace.
BANDS = [
    ("ilvr", {}, (0.32, 0.50), (0.85, 1.03)),
    ("ccdf", {}, (0.05, 0.21), (0.55, 0.73)),
    ("score-mri", {"steps": 100}, (0.20, 0.38), (1.06, 1.28)),
    ("noised-measurements", {"steps": 100}, (0.22, 0.40), (1.00, 1.23)),
    ("mcg", {"steps": 200}, (1.30, 1.90), (0.28, 0.50)),
    ("mcg", {"steps": 200, "zeta": 0.03}, (0.01, 0.18), (0.74, 0.94)),
]


@pytest.mark.parametrize(("name", "settings", "mean", "trace"), BANDS)
def test_recorded_biases(name, settings, mean, trace):
    samples = find_solver(name, **settings)(task(), rng=Streams(0, 1, 2000)).samples[0]
    found = moments(gaussian_problem(), samples)
    assert mean[0] < found["mean"] < mean[1]
    assert trace[0] < found["trace"] < trace[1]


def test_langevin_dynamics_tends_to_the_posterior():
    # Consistent: with more steps at each level, the excess of variance goes to sampling error, sqrt(2 / (200 * 3)) or
    # 0.06 for the three directions that matter.
    problem = gaussian_problem(isotropic=True)
    given = Task(problem.prior, problem.likelihood, problem.y, dtype=torch.float64)
    excess = []
    for inner in (4, 64):
        x = find_solver("smld", steps=20, inner=inner)(given, rng=Streams(0, 1, 200)).samples[0]
        covariance = problem.posterior()[2][0]
        excess.append(float(torch.cov(x.T).trace() / covariance.trace()) - 1)
    assert excess[0] > 0.4
    assert abs(excess[1]) < 0.2


def test_coming_closer_needs_fewer_steps():
    # From level 1.4 spreads, with the levels that it has there, DDNM+ ends where it ends from 40.
    problem = gaussian_problem()
    far = find_solver("ddnm", steps=100)(task(), rng=Streams(0, 1, 2000)).samples[0]
    near = find_solver("ccdf", steps=48)(task(), rng=Streams(0, 1, 2000)).samples[0]
    scale = problem.posterior()[2][0].diagonal().sqrt()
    assert float(((far.mean(0) - near.mean(0)) / scale).abs().max()) < 0.12
    assert float((torch.cov(far.T).trace() / torch.cov(near.T).trace() - 1).abs()) < 0.12
    with pytest.raises(CapabilityError, match="linear"):
        find_solver("ccdf")(task(Square()), rng=Streams(0, 1, 2))
