"""Splitting solvers: recorded biases on exact posteriors, one stream a sample, any operator and noise they promise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from assimilate.posterior.denoisers import GaussianDenoiser, StationaryDenoiser
from assimilate.posterior.predictors import Clean
from benchmarks.scorecard.problems import gaussian_problem
from benchmarks.scorecard.statistics import scores
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.operators.blur import gaussian_blur
from imaging.solvers import find_solver, solver_class
from imaging.solvers.base import Task
from imaging.solvers.daps import DAPS
from imaging.solvers.ddpm_levels import ddpm_level
from imaging.solvers.proximal import DiffPIR
from imaging.solvers.purification import DCDP
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.poisson import Poisson
from observations.sampling import Identity, Matrix

SMALL = {
    "diffpir": {"steps": 8}, "dds": {"steps": 8}, "dcdp": {"rounds": 2, "gradient_steps": 5, "levels": 3},
    "dcdp-tweedie": {"rounds": 3, "gradient_steps": 5}, "sitcom": {"steps": 4, "iterations": 3},
    "daps": {"steps": 8, "inner_steps": 8}, "daps-published": {"steps": 6, "inner_steps": 8},
    "pnp-dm": {"iterations": 4, "levels": 4, "inner_steps": 8}, "red-diff": {"steps": 12},
}


def task_of(problem, **changes):
    prior = GaussianDenoiser(problem.means[0], problem.covariances[0])
    return Task(prior, problem.likelihood, problem.y, torch.float64)._replace(**changes)


def run(solver, isotropic, n=1000):
    problem = gaussian_problem(isotropic)
    return scores(problem, solver(task_of(problem), rng=Streams(1, 1, n)).samples[0])


@pytest.mark.parametrize(
    ("solver", "isotropic", "mean", "trace"),
    [
        # Traces of the isotropic problem as the bench of the project's design has them (.58, .90, 1.02, 1.62), less
        # what 100 levels instead of 400 cost; the rest is measured here. A change must be deliberate.
        (DiffPIR(), True, 0.40, 0.54),
        (DiffPIR(), False, 0.46, 0.78),
        (DiffPIR.calibrated(), True, 0.02, 0.86),
        (DiffPIR.calibrated(), False, 0.36, 1.00),
        (DAPS(steps=100), True, 0.02, 0.98),
        (DAPS(steps=100), False, 0.08, 1.02),
        (DAPS.published(steps=100), True, 0.04, 1.57),
        (DAPS.published(steps=100), False, 0.10, 1.67),
        (find_solver("dds"), True, 0.09, 0.83),
        (find_solver("dcdp"), True, 0.03, 0.92),
        (find_solver("dcdp-tweedie"), True, 0.09, 0.44),
        (find_solver("sitcom"), True, 0.35, 0.44),
        (find_solver("red-diff", steps=200), True, 0.09, 0.25),
    ],
    ids=repr,
)
def test_recorded_biases(solver, isotropic, mean, trace):
    # Standard errors at n = 1000 are 0.03 for the mean and 2 to 3 % for the trace; bands are about three of them.
    found = run(solver, isotropic)
    assert found["mean"] == pytest.approx(mean, abs=0.08)
    assert found["trace"] == pytest.approx(trace, rel=0.1)


def test_pnp_dm_is_about_exact():
    # With the right reverse step what is left is the coupling: its variance is 1 % of the prior's.
    found = run(find_solver("pnp-dm", levels=4, variance="clean", iterations=70), isotropic=False)
    assert found["mean"] < 0.13
    assert found["trace"] == pytest.approx(1, abs=0.12)


def test_pnp_dm_draws_the_coupled_posterior_at_a_fixed_rho():
    # z | y has prior covariance C + rho^2 I behind it, and x the noise R + rho^2 A A^T: at a wide rho that is not the
    # posterior, and the chain must sample exactly this.
    problem = gaussian_problem()
    rho, n = 0.5, 2000
    task = task_of(problem)
    solver = find_solver("pnp-dm", first=rho / task.prior.spread, last=rho / task.prior.spread, levels=3,
                         variance="clean", iterations=40)
    x = solver(task, rng=Streams(2, 1, n)).samples[0]
    a, c = problem.likelihood.operator.matrix(), problem.covariances[0]
    seen = a @ c @ a.T + rho**2 * a @ a.T + 0.04 * torch.eye(3)
    gain = torch.linalg.solve(seen, a @ c).T
    mean, exact = problem.means[0] + gain @ (problem.y - a @ problem.means[0]), c - gain @ a @ c
    scale = exact.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / scale).abs().max()) < 5 / math.sqrt(n) + 0.01
    assert float(((torch.cov(x.T) - exact) / (scale[:, None] * scale)).abs().max()) < 6 * math.sqrt(2 / n)


@pytest.mark.parametrize("name", SMALL)
def test_the_first_sample_is_the_same_for_one_and_sixteen(name):
    task = task_of(gaussian_problem())
    solver = find_solver(name, **SMALL[name])
    one = solver(task, rng=Streams(3, 1, 1)).samples
    many = solver(task, rng=Streams(3, 1, 16))
    torch.testing.assert_close(many.samples[:, :1], one, rtol=1e-7, atol=1e-8)
    assert many.samples.shape == (1, 16, 6) and many.evaluations > 0
    assert many.samples.std(1).min() > 1e-6
    # Another measurement beside it changes nothing either.
    two = task._replace(y=torch.stack([task.y, -task.y])[:, None])
    both = solver(two, rng=Streams(3, 2, 1)).samples
    torch.testing.assert_close(both[:1], one, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", SMALL)
def test_tiny_noise_and_a_blind_operator_stay_finite(name):
    # T11; the call itself raises on a value that is not finite.
    problem = gaussian_problem()
    for likelihood in (
        Likelihood(problem.likelihood.operator, GaussianNoise(1e-3)),
        Likelihood(Matrix((6,), torch.zeros(3, 6)), GaussianNoise(0.2)),
    ):
        solution = find_solver(name, **SMALL[name])(task_of(problem, likelihood=likelihood), rng=Streams(0, 1, 8))
        assert float(solution.samples.abs().max()) < 100


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("gap", [False, True], ids=["complete", "gap"])
def test_images_in_float32(name, gap):
    # A blurred random field: the residual comes down to the noise (a draw of the posterior has 1), and not to nothing.
    rows = torch.fft.fftfreq(16)[:, None] ** 2 + torch.fft.rfftfreq(16)[None] ** 2
    prior = StationaryDenoiser((1.0 / (1 + 200 * rows) ** 2)[None], 16)
    blur = gaussian_blur((1, 16, 16), 1.0)
    likelihood = Likelihood(blur, GaussianNoise(0.05))
    truth = prior.draw((1, 1), rng=torch.Generator().manual_seed(0), dtype=torch.float32)
    y = likelihood.sample(truth, rng=torch.Generator().manual_seed(1))
    if gap:
        y[..., 3:5, :] = torch.nan
    kept = SMALL[name] | ({"steps": 30} if name not in ("dcdp", "dcdp-tweedie", "pnp-dm") else {"rounds": 6})
    if name == "pnp-dm":
        kept = {"iterations": 40, "levels": 6}
    found = find_solver(name, **kept)(Task(prior, likelihood, y), rng=Streams(0, 1, 2)).samples
    assert found.dtype == torch.float32 and found.shape == (1, 2, 1, 16, 16)
    chi = likelihood.residual(y, found).square().sum((-3, -2, -1)) / (~torch.isnan(y)).sum()
    at_mean = likelihood.residual(y, torch.zeros_like(truth)).square().sum() / (~torch.isnan(y)).sum()
    assert float(at_mean) > 2.5
    assert float(chi.max()) < 2.0
    # RED-diff does not know the noise level and fits it.
    assert float(chi.min()) > (0.1 if name == "red-diff" else 0.3)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_nonlinear_operators_and_counts(name):
    x = 1.0 + 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = GaussianDenoiser(torch.ones(6).double(), 0.25 * torch.eye(6).double())
    solver = find_solver(name, **SMALL[name])
    curved = Likelihood(Arctan((6,), channels=[0, 1, 2]), GaussianNoise(0.1))
    task = Task(prior, curved, curved.operator(x), torch.float64)
    if "linear" in solver.needs:
        with pytest.raises(CapabilityError, match="needs a linear operator"):
            solver(task, rng=Streams(0, 1, 4))
    else:
        assert bool(torch.isfinite(solver(task, rng=Streams(0, 1, 4)).samples).all())
    counts = Likelihood(Identity((6,)), Poisson(20.0))
    task = Task(prior, counts, counts.sample(x, rng=torch.Generator().manual_seed(0)), torch.float64)
    if "gaussian" in solver.needs:
        with pytest.raises(CapabilityError, match="needs Gaussian noise"):
            solver(task, rng=Streams(0, 1, 4))
    elif name == "daps-published":
        # Its first draws are as wide as the noise level: so few steps do not bring them back to positive counts.
        assert bool(torch.isfinite(solver(task, rng=Streams(0, 1, 4)).samples).all())
    else:
        found = solver(task, rng=Streams(0, 1, 50)).samples
        prior = prior.draw((1, 50), rng=torch.Generator().manual_seed(0))
        assert float(counts.log_prob(task.y, found).median()) > float(counts.log_prob(task.y, prior).median())


def test_units_of_the_image_do_not_matter():
    # The same problem in units ten times smaller: the same samples, times ten.
    problem = gaussian_problem()
    plain = task_of(problem)
    scaled = Task(
        GaussianDenoiser(10 * problem.means[0], 100 * problem.covariances[0], smallest=0.02, largest=400.0),
        Likelihood(problem.likelihood.operator, GaussianNoise(2.0)), 10 * problem.y, torch.float64,
    )
    for name, settings in SMALL.items():
        solver = find_solver(name, **settings)
        first = solver(plain, rng=Streams(4, 1, 3)).samples
        second = solver(scaled, rng=Streams(4, 1, 3)).samples
        # Adam's epsilon and the flow's time grid know units, both to less than this.
        torch.testing.assert_close(second / 10, first, rtol=1e-4, atol=1e-4)


@dataclass(frozen=True)
class FakeConsistency:
    """Draws from N(0, 1) whatever it is given, as a consistency model of pure noise would."""

    event_shape = (6,)
    spread = 1.0
    smallest = 0.002
    largest = 40.0
    bounds = None
    gives = "draw"

    def __call__(self, noisy, ratio, condition=None):
        return Clean(noisy / torch.sqrt(1 + torch.as_tensor(ratio) ** 2))


def test_kinds_of_priors_are_told_apart():
    problem = gaussian_problem(isotropic=True)
    draws = task_of(problem, prior=FakeConsistency())
    solution = find_solver("dcdp-consistency")(draws, rng=Streams(0, 1, 50))
    assert solution.evaluations == 10
    # One evaluation is the flow that DDIM takes many for: on this prior, N(0, I), both come to the same.
    prior = GaussianDenoiser(torch.zeros(6).double(), torch.eye(6).double())
    ddim = find_solver("dcdp", levels=100)(task_of(problem, prior=prior), rng=Streams(0, 1, 50))
    torch.testing.assert_close(solution.samples, ddim.samples, atol=0.1, rtol=0)
    for name in ("dcdp", "dcdp-tweedie", "diffpir", "dds", "daps", "sitcom", "pnp-dm", "red-diff"):
        with pytest.raises(CapabilityError, match="clean mean"):
            find_solver(name)(draws, rng=Streams(0, 1, 2))
    with pytest.raises(CapabilityError, match="needs a consistency model"):
        find_solver("dcdp-consistency")(task_of(problem), rng=Streams(0, 1, 2))


def test_published_levels_and_presets():
    # The discrete schedule: beta from 1e-4 to 0.02 in a thousand steps, images of spread 1/2.
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for step in (100, 400, 700, 1000):
        discrete = math.sqrt(1 / float(kept[step - 1]) - 1)
        assert ddpm_level(step / 1000, 0.5) == pytest.approx(discrete, rel=0.05)
    assert find_solver("daps-published") == DAPS(centre="flow", variance="noise")
    assert find_solver("dcdp-tweedie", rounds=4) == DCDP(rounds=4, denoise="tweedie")
    assert eval(repr(DiffPIR.calibrated())) == replace(DiffPIR(), strength=1.0, zeta=0.3)
    for name in SMALL:
        made = solver_class(name)()
        assert made.reference and made.name and made.backpropagates == (name == "sitcom")
    with pytest.raises(ValueError, match="above the prior's smallest"):
        find_solver("pnp-dm", last=1e-3)(task_of(gaussian_problem()), rng=Streams(0, 1, 1))
    for bad in (lambda: ddpm_level(0.0, 1.0), lambda: DCDP(denoise="heun"), lambda: find_solver("red-diff", rate=0)):
        with pytest.raises((ValueError, Exception), match="expected"):
            bad()
