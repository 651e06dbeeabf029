"""Every solver by name on exact posteriors: its contract, and calibration where it claims to be exact.

How biased each one is, is the scorecard's (`tests/test_scorecard.py`, `assimilate scorecard`).
"""

import dataclasses

import pytest
import torch

from benchmarks.scorecard.problems import field_problem, gaussian_problem
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from imaging.solvers import SOLVERS, find_solver
from imaging.solvers.base import Task
from imaging.solvers.guided import DPS, MMPS, TMPD, CleanCovariance, FlowChef, PiGDM, ScoreDPS
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix

QUICK = {"steps": 12, "particles": 32, "levels": 5}
"""Settings that make a solver quick; what it returns is then no posterior, but the contract is the same."""


def quick(name):
    """The solver of a name with few steps, and a small task that it can solve, or a skip."""
    if name == "wavelet":
        pytest.importorskip("pywt")
    if name == "diffusion-mbir":
        pytest.skip("needs a volume: tests/imaging/test_volumes.py")
    solver = find_solver(name)
    fields = {f.name for f in dataclasses.fields(solver)}
    solver = dataclasses.replace(solver, **{k: v for k, v in QUICK.items() if k in fields})
    for problem in (gaussian_problem(), field_problem()):
        task = Task(problem.prior, problem.likelihood, problem.y, dtype=torch.float64)
        try:
            solver.check(task)
        except CapabilityError:
            continue
        return solver, task
    pytest.skip(f"{name} needs neither vectors nor a blurred field")


@pytest.mark.parametrize("name", SOLVERS)
def test_the_first_sample_does_not_depend_on_how_many_there_are(name):
    # T4: rows are alone with their own stream; also in a batch of measurements.
    solver, task = quick(name)
    one = solver(task, rng=Streams(5, 1, 1))
    many = solver(task._replace(y=torch.stack([task.y, 0.5 * task.y])[:, None]), rng=Streams(5, 2, 3))
    assert many.samples.shape == (2, 3, *task.event_shape)
    torch.testing.assert_close(many.samples[0, 0], one.samples[0, 0], rtol=1e-6, atol=1e-6)
    # A batch that optimises goes on until its last row has converged.
    assert 0 <= one.evaluations <= many.evaluations


@pytest.mark.parametrize("name", SOLVERS)
def test_a_seed_gives_the_same_samples_and_another_one_others(name):
    solver, task = quick(name)
    first, again, other = (solver(task, rng=Streams(seed, 1, 2)).samples for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    if solver.exactness != "point":
        assert float((first - other).abs().max()) > 0
        assert float((first[:, 0] - first[:, 1]).abs().max()) > 0


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_says_what_it_is(name):
    solver = find_solver(name)
    assert (solver.name and "http" in solver.reference) or solver.reference.startswith("Assimilate")
    assert solver.exactness in ("exact", "consistent", "biased", "point")
    assert set(solver.needs) <= {"linear", "svd", "gaussian", "white", "mean"}
    assert eval(repr(solver), vars(__import__(type(solver).__module__, fromlist=["x"]))) == solver


@pytest.mark.parametrize("solver", [PiGDM(steps=30), TMPD(steps=30), MMPS(steps=30), CleanCovariance(), FlowChef()])
def test_tiny_noise_and_a_blind_operator_stay_finite(solver):
    # T11: sigma_y = 1e-3, and A = 0, whose posterior is the prior.
    problem = gaussian_problem()
    blind = Matrix((6,), torch.zeros(3, 6, dtype=torch.float64))
    for operator, noise in ((problem.likelihood.operator, 1e-3), (blind, 0.2)):
        task = Task(problem.prior, Likelihood(operator, GaussianNoise(noise)), problem.y, dtype=torch.float64)
        samples = solver(task, rng=Streams(0, 1, 50)).samples
        assert bool(torch.isfinite(samples).all())
        # TMPD's row sums do not bound its step on an operator with signs.
        assert isinstance(solver, TMPD) or float(samples.abs().max()) < 30


def joint(n, seed=0):
    """Truths of the prior, `(n, 6)`, and their measurements, as the Gaussian problem has them."""
    problem, rng = gaussian_problem(), torch.Generator().manual_seed(seed)
    truth = problem.law.draw(n, rng=rng)
    clean = problem.likelihood.operator(truth)
    return problem, truth, clean + 0.2 * torch.randn(clean.shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    ("solver", "low", "high"),
    [
        (CleanCovariance(steps=100), 0.95, 1.05),
        (MMPS(steps=100), 0.85, 1.05),
        # Guidance without a covariance of the clean state trusts the measurement too much, and fits its noise.
        (ScoreDPS(steps=200), 0.0, 0.8),
        # A constant step that is too short for this noise leaves more than the noise.
        (DPS(steps=200), 1.2, 100.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_residuals_of_samples_are_as_large_as_the_noise(solver, low, high):
    # T8: truth and sample are exchangeable given y, so |y - A x|^2 / sigma^2 has the mean m over truths and samples.
    # 500 measurements of 3 values: standard error sqrt(2 / 1500) = 0.037, less what 4 samples each average out.
    problem, _, y = joint(500)
    task = Task(problem.prior, problem.likelihood, y[:, None], dtype=torch.float64)
    samples = solver(task, rng=Streams(1, 500, 4)).samples
    found = float(problem.likelihood.residual(y[:, None], samples).square().mean())
    assert low - 0.1 * (low > 0) < found < high + 0.1


@pytest.mark.parametrize("solver", [CleanCovariance(steps=50), MMPS(steps=100)], ids=lambda v: type(v).__name__)
def test_ranks_of_the_truth_are_uniform(solver):
    # T7: among 19 samples the truth is as likely to come first as last. 400 truths in 10 bins of 2 ranks: chi-square
    # with 9 degrees of freedom, beyond 27.9 once in a thousand; a spread of 0.8 would give about 60.
    problem, truth, y = joint(400, seed=3)
    task = Task(problem.prior, problem.likelihood, y[:, None], dtype=torch.float64)
    samples = solver(task, rng=Streams(2, 400, 19)).samples
    for value in range(6):
        ranks = (samples[..., value] < truth[:, None, value]).sum(1)
        counts = torch.bincount(ranks // 2, minlength=10).double()
        assert float(((counts - 40) ** 2 / 40).sum()) < 27.9 + 5
