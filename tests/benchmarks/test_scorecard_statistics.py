"""The judge is judged: laws against automatic differentiation and quadrature, statistics on samples that are known."""

import math

import pytest
import torch

from assimilate.posterior.predictors import Context, OnPath
from benchmarks.scorecard.problems import FIELD, PROBLEMS, field_problem, mixture_problem
from benchmarks.scorecard.recipes import Variant
from benchmarks.scorecard.statistics import reference, scores, sliced_wasserstein
from benchmarks.scorecard.stein import stein_diagonal, stein_matrix

N = 1000


@pytest.fixture(scope="module", params=list(PROBLEMS))
def judge(request):
    """A posterior and draws of it."""
    return reference(PROBLEMS[request.param]())


def draws(judge, n=N, seed=77):
    return judge.posterior.draw(n, rng=torch.Generator().manual_seed(seed))


def test_posterior_is_prior_times_likelihood(judge):
    # Bayes: log posterior - log prior - log likelihood is the same number, minus the log evidence, everywhere.
    x = draws(judge, 20)
    event = x.reshape(20, *judge.problem.event_shape)
    rest = judge.problem.law.log_prob(x) + judge.problem.likelihood.log_prob(judge.problem.y, event)
    evidence = rest - judge.posterior.log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(20), rtol=1e-8, atol=1e-6)


def test_score_is_the_gradient_of_the_log_density(judge):
    x = draws(judge, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(judge.posterior.log_prob(x).sum(), x)
    torch.testing.assert_close(judge.posterior.score(x.detach()), gradient, rtol=1e-8, atol=1e-8)


def test_denoiser_is_that_of_the_law(judge):
    # Tweedie: m = x + rho^2 grad log p_rho(x), with p_rho the law widened by rho^2 I.
    rho, x = 0.7, draws(judge, 4) + 0.3
    d = x.shape[1]
    wide = judge.problem.law._replace(
        covariances=judge.problem.law.covariances + rho**2 * torch.eye(d, dtype=torch.float64)
    )
    expected = x + rho**2 * wide.score(x)
    found = judge.problem.prior(x.reshape(4, *judge.problem.event_shape), torch.tensor(rho, dtype=torch.float64))
    torch.testing.assert_close(found.mean.reshape(4, -1), expected, rtol=1e-6, atol=1e-8)


def test_field_posterior_is_the_wiener_filter():
    # With periodic edges every Fourier mode stands alone: gain s h* / (s |h|^2 + noise), variance s noise / (...).
    problem = field_problem()
    posterior = problem.posterior()
    impulse = torch.zeros(FIELD, dtype=torch.float64)
    impulse[0, 0, 0] = 1.0
    h, s, noise = torch.fft.rfft2(problem.likelihood.operator(impulse)), problem.denoiser.spectrum, 0.1**2
    total = s * h.abs() ** 2 + noise
    mean = torch.fft.irfft2(s * h.conj() / total * torch.fft.rfft2(problem.y), s=FIELD[1:])
    torch.testing.assert_close(posterior.means[0], mean.flatten(), rtol=1e-8, atol=1e-10)
    row = torch.fft.irfft2((s * noise / total).to(h), s=FIELD[1:]).flatten()
    torch.testing.assert_close(posterior.covariances[0][0], row, rtol=1e-8, atol=1e-10)


def test_mixture_posterior_by_quadrature():
    # Moments on a grid: spacing 0.02 against a standard deviation of 0.25, so the sums are exact to 1e-6.
    problem = mixture_problem()
    axis = torch.arange(-5, 5, 0.02, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    weights = torch.softmax(problem.law.log_prob(grid) + problem.likelihood.log_prob(problem.y, grid), 0)
    posterior = problem.posterior()
    torch.testing.assert_close(weights @ grid, posterior.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((grid - posterior.mean).T * weights @ (grid - posterior.mean), posterior.covariance)


def test_exact_draws_look_exact(judge):
    # Chance alone: 1 / sqrt(n) = 0.032 for the mean, and for modes; T10's positive control: a KSD ratio near 1.
    found = scores(judge, draws(judge))
    assert found["mean"] < 3.2 / math.sqrt(N)
    assert abs(found["trace"] - 1) < 4.5 * found["trace_error"]
    assert abs(found["coverage"] - 0.9) < 0.025
    assert abs(found["residual"] - 1) < 0.1
    assert 0.4 < found["ksd"] < 1.9
    assert found.get("modes", 0.0) < 0.05
    assert found["sliced"] < 0.12


def test_wrong_draws_look_wrong(judge):
    # A shift of 0.2 standard deviations and a variance of 0.64 of the right one are read off as such.
    x, middle = draws(judge), judge.posterior.mean
    shifted = scores(judge, x + 0.2 * judge.posterior.covariance.diagonal().sqrt())
    assert shifted["mean"] == pytest.approx(0.2, abs=0.06)
    assert shifted["sliced"] > 0.15
    assert shifted["ksd"] > 3
    narrow = scores(judge, middle + 0.8 * (x - middle))
    assert narrow["trace"] == pytest.approx(0.64, abs=0.06)
    assert narrow["coverage"] < 0.86


def test_lost_modes_are_seen():
    judge = reference(mixture_problem())
    x = draws(judge)
    one = x[judge.problem.law.nearest(x) == 0]
    found = scores(judge, one)
    assert found["mode"] == 1.0
    assert found["modes"] == pytest.approx(1 - found["mode_exact"])
    assert found["mode_exact"] == pytest.approx(float(judge.posterior.weights[0]), abs=4 * math.sqrt(0.25 / 20_000))


def test_one_answer_has_no_spread():
    judge = reference(mixture_problem(), draws=100)
    assert scores(judge, draws(judge, 16), spread=False).keys() == {"mean", "residual"}


def test_stein_kernel_is_its_definition():
    # The four terms by automatic differentiation of the kernel, at every pair of a few states.
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    s = torch.randn(4, 3, generator=rng, dtype=torch.float64)

    def kernel(a, b):
        return (3.0 + (a - b).square().sum()) ** -0.5

    expected = torch.empty(4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            first, second = torch.func.grad(kernel, (0, 1))(x[i], x[j])
            mixed = torch.func.jacfwd(torch.func.grad(kernel, 0), 1)(x[i], x[j])
            value = s[i] @ s[j] * kernel(x[i], x[j]) + s[i] @ second + s[j] @ first + mixed.trace()
            expected[i, j] = value
    found = stein_matrix(x, s, 3.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stein_diagonal(s, 3.0), found.diagonal(), rtol=1e-9, atol=1e-9)


def test_sliced_distance_of_a_shift():
    # Every projection of a shift by v is one by v.u; over all directions the mean square is |v|^2 / d.
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sliced_wasserstein(x, x) == pytest.approx(0.0, abs=1e-12)
    v = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    # 64 directions: the mean of u_1^2, 1/3, has a standard error of sqrt(4/45 / 64) = 0.037.
    assert sliced_wasserstein(x + v, x) ** 2 / 9 == pytest.approx(1 / 3, abs=0.15)


def test_variants_follow_the_paths_that_they_name():
    problem = PROBLEMS["gaussian"]()
    from imaging.solvers.base import Task

    task = Task(problem.prior, problem.likelihood, problem.y, dtype=torch.float64)
    path = Variant(kind="interpolant").path(task)
    times = Variant(kind="interpolant", steps=5).times(task, path)
    assert float(times[0]) == 0.0 and float(times[-1]) == 1.0 and len(times) == 6
    assert float(Variant(kind="ode", steps=5).times(task, Variant().path(task))[-1]) == 1.0
    x = torch.zeros(2, 6, dtype=torch.float64)
    clean = OnPath(problem.prior, path)(x, torch.tensor(0.0, dtype=torch.float64), Context())
    torch.testing.assert_close(clean.mean, problem.law.mean.expand(2, -1), rtol=1e-2, atol=1e-2)
