"""Guidance: exact where it claims to be, inside recorded bands where it is not, and independent of the batch."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.condition import condition
from assimilate.posterior.covariance import Dense, Modulated
from assimilate.posterior.guidance import DPS, MMPS, SDA, TMPD, JacobianFree, MonteCarlo, PiGDM
from assimilate.posterior.linearize import linearize
from assimilate.posterior.paths import VE, VP, FlowMatching, Interpolant
from assimilate.posterior.predictors import Context, GaussianPredictor
from assimilate.posterior.samplers import Ancestral, EulerMaruyama, Heun, Renoise
from assimilate.posterior.time_grids import ratio_times, uniform_times
from assimilate.posterior.update import gaussian_update
from benchmarks.scorecard.problems import gaussian_problem, mixture_problem
from benchmarks.scorecard.sampling import sample
from benchmarks.scorecard.statistics import scores
from observations.base import ObservationOperator
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Mask, Matrix

ALL = [
    DPS(),
    DPS(form="norm", gain="constant", strength=0.1),
    SDA(gamma=0.1),
    PiGDM(),
    TMPD(),
    MMPS(iterations=3),
    JacobianFree(),
    JacobianFree(covariance="clean"),
    JacobianFree(gain="constant", strength=0.01),
    MonteCarlo(draws=8),
    MonteCarlo(draws=8, endpoint="first_order", objective="weighted_norm", gain="constant", strength=0.01),
    MonteCarlo(draws=8, endpoint="second_order", objective="pooled_norm", gain="constant", strength=0.01),
    MonteCarlo(draws=8, endpoint="second_order", second_at="state", objective="mean_norm"),
]


# Recorded biases on the anisotropic Gaussian; a change is an event, not a bug. Measured by
# `assimilate scorecard --problem gaussian`: centre of each band, widened by four times the sampling error.
BANDS = [
    (TMPD(), (0.25, 0.48), (0.88, 1.04)),
    (PiGDM(), (0.16, 0.33), (0.98, 1.14)),
    (SDA(gamma=0.1), (0.15, 0.33), (0.78, 0.93)),
    (SDA(gamma=1.0), (0.17, 0.36), (1.18, 1.40)),
    (DPS(), (0.30, 0.56), (0.71, 0.87)),
]


class Cube(ObservationOperator):
    """A nonlinear operator."""

    space = (6,)

    def forward(self, x):
        return x[..., :2] ** 3 + x[..., 2:4]


@pytest.mark.parametrize("interpolant", [False, True], ids=["ve", "interpolant"])
@pytest.mark.parametrize("exact", [MMPS(iterations=3), JacobianFree(covariance="clean")])
def test_exact_guidances_give_the_exact_posterior_at_400_steps(exact, interpolant):
    # T3/T9. Sampling: mean 1/sqrt(n) = 0.016, trace sqrt(2/(n d_eff)) = 0.02; bands 0.03 and 0.03 are the issue's.
    problem, n = gaussian_problem(), 4000
    if interpolant:
        path = Interpolant()
        times = ratio_times(path, 400, largest=40.0, smallest=0.002, dtype=torch.float64)
        x = sample(problem, exact, EulerMaruyama("foellmer"), path, times, n, seed=3)
    else:
        x = sample(problem, exact, Heun(), VE(largest=40.0), uniform_times(400, dtype=torch.float64), n, seed=3)
    found = scores(problem, x)
    assert found["mean"] < 0.03
    assert 0.97 - 0.02 < found["trace"] < 1.03 + 0.02


@pytest.mark.parametrize(
    ("guidance", "mean", "trace"),
    BANDS,
)
def test_biased_guidances_stay_in_their_bands(guidance, mean, trace):
    problem = gaussian_problem()
    x = sample(problem, guidance, Ancestral(), VE(largest=40.0), uniform_times(400, dtype=torch.float64), 2000, seed=0)
    found = scores(problem, x)
    assert mean[0] < found["mean"] < mean[1]
    assert trace[0] < found["trace"] < trace[1]


@pytest.mark.parametrize("guidance", [PiGDM(), TMPD()])
def test_isotropic_priors_are_exact_for_pigdm_and_tmpd(guidance):
    problem = gaussian_problem(isotropic=True)
    x = sample(problem, guidance, Heun(), VE(largest=40.0), uniform_times(200, dtype=torch.float64), 4000, seed=3)
    found = scores(problem, x)
    assert found["mean"] < 0.05
    assert abs(found["trace"] - 1) < 0.04


def test_mode_weights_of_a_mixture():
    # T7: single-chain guidance misweights modes in general; MMPS stays within 0.06 here (sampling error 0.011).
    problem = mixture_problem()
    path, times = VE(largest=40.0), uniform_times(200, dtype=torch.float64)
    found = scores(problem, sample(problem, MMPS(iterations=1), Ancestral(), path, times, 2000, seed=0))
    assert abs(found["mode"] - found["mode_exact"]) < 0.06


@pytest.mark.parametrize("guidance", ALL, ids=repr)
@pytest.mark.parametrize("path", [VP(), Interpolant()], ids=["vp", "interpolant"])
def test_guidance_does_not_depend_on_the_batch(guidance, path):
    # T4, rule 1: row i is unchanged when rows are added or permuted. Draws are made per row by Streams.
    from dynamics.random import Streams, normal

    problem = gaussian_problem()
    big, small = Streams(3, 1, 10), Streams(3, 1, 4)
    x = normal(Streams(5, 1, 10), (1, 10, 6), dtype=torch.float64)
    y = problem.y + 0 * x[..., :3]
    t = torch.tensor(0.6, dtype=torch.float64)

    def shifted(rows, rng):
        context = Context(base=torch.full_like(rows, 0.3) if isinstance(path, Interpolant) else None)
        conditioned = condition(
            problem.predictor(path), path, problem.likelihood, y[:, : rows.shape[1]], guidance, event_dims=1, rng=rng
        )
        clean = conditioned(rows, t, context)
        return clean.mean if clean.kick is None else clean.mean + clean.kick

    torch.testing.assert_close(shifted(x, big)[:, :4], shifted(x[:, :4], small), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance", [DPS(), SDA(), PiGDM(prior_std=1.0), TMPD(), MMPS(iterations=3)], ids=repr)
def test_paths_agree_under_rescaling(guidance):
    # T4: the same noise-to-signal ratio and the same unit-space state give the same shifted mean on every path.
    problem = gaussian_problem()
    unit = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = []
    for path in (VE(), VP(), FlowMatching()):
        t = torch.tensor(path.time(0.8), dtype=torch.float64)
        x = unit * path.coefficients(t, unit).beta
        conditioned = condition(problem.predictor(path), path, problem.likelihood, problem.y, guidance, event_dims=1)
        means.append(conditioned(x, t, Context()).mean)
    torch.testing.assert_close(means[1], means[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(means[2], means[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guidance", ALL, ids=repr)
def test_missing_values_contribute_exactly_nothing(guidance):
    # The same as an operator without those rows; and nothing at all observed leaves the mean alone.
    problem, path = gaussian_problem(), Interpolant()
    matrix = problem.likelihood.operator.matrix()
    x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    context, t = Context(base=torch.zeros_like(x)), torch.tensor(0.5, dtype=torch.float64)
    gap = torch.tensor([problem.y[0], torch.nan, problem.y[2]], dtype=torch.float64)
    fewer = Likelihood(Matrix((6,), matrix[[0, 2]]), GaussianNoise(0.2))

    def ask(likelihood, y):
        rng = torch.Generator().manual_seed(1)
        clean = condition(problem.predictor(path), path, likelihood, y, guidance, event_dims=1, rng=rng)(x, t, context)
        return clean.mean - clean.unguided.mean + (0.0 if clean.kick is None else clean.kick)

    torch.testing.assert_close(ask(problem.likelihood, gap), ask(fewer, problem.y[[0, 2]]), rtol=1e-6, atol=1e-8)
    norms = getattr(guidance, "form", "") == "norm" or "norm" in getattr(guidance, "objective", "")
    if not norms:
        nothing = ask(problem.likelihood, torch.full((3,), torch.nan, dtype=torch.float64))
        assert float(nothing.abs().max()) == 0.0


@pytest.mark.parametrize(
    "guidance", [PiGDM(), TMPD(), MMPS(), JacobianFree(), JacobianFree(covariance="clean")], ids=repr
)
def test_tiny_noise_and_a_blind_operator_stay_finite(guidance):
    # T11: sigma_y = 1e-3 and A = 0.
    problem, path = gaussian_problem(), Interpolant()
    times = ratio_times(path, 30, largest=20.0, smallest=0.01, dtype=torch.float64)
    for likelihood in (
        Likelihood(problem.likelihood.operator, GaussianNoise(1e-3)),
        Likelihood(Matrix((6,), torch.zeros(3, 6, dtype=torch.float64)), GaussianNoise(0.2)),
    ):
        x = sample(problem._replace(likelihood=likelihood), guidance, Ancestral(), path, times, 50, seed=0)
        assert bool(torch.isfinite(x).all())
        # TMPD's row sums, clipped at zero, do not bound its step on an operator with signs: a known weakness.
        assert isinstance(guidance, TMPD) or float(x.abs().max()) < 30


def test_gradients_are_those_of_their_objectives():
    # T3: each linearised guidance is J^T A'^T S^-1 r with its own S; recomputed here from the exact Jacobian.
    problem, path = gaussian_problem(), VP()
    predictor = problem.predictor(path)
    a, r = problem.likelihood.operator.matrix(), problem.likelihood.noise.covariance_matrix(3, dtype=torch.float64)
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(0.7, dtype=torch.float64)
    c = path.coefficients(t, x)
    jacobian = torch.func.jacrev(lambda z: predictor(z, t, Context()).mean)(x)
    clean = predictor(x, t, Context()).mean
    v = c.noise**2 / c.beta * jacobian
    rho2 = (c.noise / c.beta) ** 2
    spread = {
        DPS(): r,
        SDA(gamma=0.3): r + 0.3 * rho2 * torch.eye(3),
        PiGDM(): r + rho2 / (1 + rho2) * a @ a.T,
        TMPD(): r + torch.diag((a @ v @ a.T).sum(1).clamp_min(0)),
        MMPS(iterations=3): r + a @ v @ a.T,
    }
    for guidance, s in spread.items():
        conditioned = condition(predictor, path, problem.likelihood, problem.y, guidance, event_dims=1)
        shift = conditioned(x[None], t, Context()).mean[0] - clean
        expected = v.T @ a.T @ torch.linalg.solve(s, problem.y - a @ clean)
        torch.testing.assert_close(shift, expected, rtol=1e-6, atol=1e-8)
    exact = condition(predictor, path, problem.likelihood, problem.y, JacobianFree(covariance="clean"), event_dims=1)
    torch.testing.assert_close(
        exact(x[None], t, Context()).mean[0],
        clean + v @ a.T @ torch.linalg.solve(spread[MMPS(iterations=3)], problem.y - a @ clean),
    )


def test_monte_carlo_tends_to_the_exact_gradient():
    # p(y | x_t) is Gaussian: with the clean covariance the averaged likelihood tends to it as J grows, like 1/sqrt(J).
    problem, path = gaussian_problem(), Interpolant()
    likelihood = Likelihood(problem.likelihood.operator, GaussianNoise(2.0))
    x = torch.zeros(1, 6, dtype=torch.float64)
    context, t = Context(base=torch.zeros_like(x)), torch.tensor(0.5, dtype=torch.float64)

    def shift(guidance, seed=0):
        rng = torch.Generator().manual_seed(seed)
        clean = condition(problem.predictor(path), path, likelihood, problem.y, guidance, event_dims=1, rng=rng)(
            x, t, context
        )
        return clean.mean - clean.unguided.mean

    exact = shift(MMPS(iterations=3))
    errors = {}
    for draws in (64, 4096):
        errors[draws] = math.sqrt(
            sum(float((shift(MonteCarlo(draws=draws), seed) - exact).square().sum()) for seed in range(20)) / 20
        )
    assert errors[4096] < errors[64] / 4
    assert errors[4096] < 0.05 * float(exact.norm())


def test_linearize_against_finite_differences():
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    value, forward, adjoint = linearize(Cube(), x)
    torch.testing.assert_close(forward(v), (Cube()(x + 1e-6 * v) - Cube()(x - 1e-6 * v)) / 2e-6, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((forward(v) * w).sum(-1), (v * adjoint(w)).sum(-1))
    assert value.shape == (3, 2)


def modulated(rows=5, columns=7, samples=2):
    std = 0.5 + torch.rand(samples, 1, rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Modulated(std, torch.exp(-torch.arange(40, dtype=torch.float64) / 2))


def matrix_of(covariance, size):
    block = covariance.block(torch.arange(size))
    return block.scale[..., :, None] * block.matrix * block.scale[..., None, :]


def test_modulated_covariance_against_its_matrix():
    covariance = modulated()
    matrix = matrix_of(covariance, 35)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10
    v = torch.randn(2, 1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(covariance.apply(v), (matrix @ v.reshape(2, -1, 1)).reshape(v.shape))
    # Neighbours correlate by exp(-1/2), within what clipping the spectrum moves.
    first = covariance.block(torch.tensor([0, 1])).matrix
    assert float(first[0, 1]) == pytest.approx(math.exp(-0.5), abs=0.02)
    n = 20_000
    draws = Modulated(covariance.std[:1], covariance.correlation).draw(
        torch.Generator().manual_seed(2), (n, 1, 5, 7), dtype=torch.float64, device="cpu"
    )
    scale = covariance.std[0].flatten()
    error = (torch.cov(draws.flatten(1).T) - matrix[0]) / (scale[:, None] * scale)
    assert float(error.abs().max()) < 6 * math.sqrt(2 / n)


def test_updated_covariance_is_the_posterior():
    # Factor, preconditioned and plain conjugate gradients, products and draws against the closed form.
    covariance = modulated()
    matrix, index = matrix_of(covariance, 35), torch.tensor([0, 4, 17, 30])
    likelihood = Likelihood(Mask((1, 5, 7), index), GaussianNoise(0.3))
    y = torch.tensor([1.0, torch.nan, -0.5, 0.2], dtype=torch.float64)
    mean = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
    shift, updated = gaussian_update(mean, covariance, likelihood, y)
    seen = index[[0, 2, 3]]
    for row in range(2):
        v = matrix[row]
        gain = torch.linalg.solve(v[seen][:, seen] + 0.09 * torch.eye(3), v[seen]).T
        torch.testing.assert_close(shift[row].flatten(), gain @ y[[0, 2, 3]], rtol=2e-3, atol=2e-3)
        exact = v - gain @ v[seen]
        basis = torch.eye(35, dtype=torch.float64).reshape(35, 1, 1, 5, 7).expand(35, 2, 1, 5, 7)
        found = torch.stack([updated.apply(b)[row].flatten() for b in basis], 1)
        torch.testing.assert_close(found, exact, rtol=5e-3, atol=5e-3)
    n = 10_000
    wide = Modulated(covariance.std[:1].expand(n, 1, 5, 7), covariance.correlation)
    _, many = gaussian_update(mean[:1].expand(n, 1, 5, 7), wide, likelihood, y)
    draws = many.draw(torch.Generator().manual_seed(0), (n, 1, 5, 7), dtype=torch.float64, device="cpu").flatten(1)
    v = matrix[0]
    exact = v - v[:, seen] @ torch.linalg.solve(v[seen][:, seen] + 0.09 * torch.eye(3), v[seen])
    scale = covariance.std[0].flatten()
    assert float(((torch.cov(draws.T) - exact) / (scale[:, None] * scale)).abs().max()) < 6 * math.sqrt(2 / n) + 0.005


@pytest.mark.parametrize("steps", [2, 5])
def test_the_posterior_covariance_makes_guided_sampling_exact_in_few_steps(steps):
    # With m_y and V_y right, both samplers draw a Gaussian posterior exactly, whatever the grid.
    problem, n = gaussian_problem(), 20_000
    path = Interpolant()
    times = uniform_times(steps, dtype=torch.float64)
    for sampler in (Ancestral(variance="clean"), Renoise()):
        x = sample(problem, JacobianFree(covariance="clean"), sampler, path, times, n, seed=1)
        found = scores(problem, x)
        assert found["mean"] < 5 / math.sqrt(n)
        assert abs(found["trace"] - 1) < 0.03


def test_gaussian_update_by_factor_and_by_conjugate_gradients():
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=rng, dtype=torch.float64)
    covariance, mean = root @ root.T, torch.randn(4, 6, generator=rng, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False, False])
    matrix = torch.eye(6, dtype=torch.float64)[mask]
    y = torch.tensor([0.5, torch.nan, -1.0], dtype=torch.float64)
    seen = matrix[[0, 2]]
    gain = covariance @ seen.T @ torch.linalg.inv(seen @ covariance @ seen.T + 0.09 * torch.eye(2))
    expected = (y[[0, 2]] - mean @ seen.T) @ gain.T
    dense = Dense(covariance, 1)
    for operator in (Matrix((6,), matrix), Mask((6,), mask)):
        shift, _ = gaussian_update(mean, dense, Likelihood(operator, GaussianNoise(0.3)), y)
        torch.testing.assert_close(shift, expected, rtol=1e-6, atol=1e-6)


def test_bad_requests_speak():
    problem, path = gaussian_problem(), VP()
    with pytest.raises(ValueError, match="pass rng"):
        condition(problem.predictor(path), path, problem.likelihood, problem.y, MonteCarlo(), event_dims=1)
    with pytest.raises(ValueError, match="endpoint is 'euler'"):
        MonteCarlo(endpoint="euler")
    with pytest.raises(ValueError, match="constant-gain"):
        guided = condition(problem.predictor(path), path, problem.likelihood, problem.y, ALL[1], event_dims=1)
        Ancestral()(
            guided,
            path,
            torch.zeros(2, 6, dtype=torch.float64),
            times=uniform_times(3, dtype=torch.float64),
            event_dims=1,
            rng=torch.Generator(),
            weighted=True,
        )

    def bare(x, t, context):
        return GaussianPredictor(problem.law.covariances[0], path, problem.law.means[0])(x, t, context)._replace(
            covariance=None
        )

    with pytest.raises(ValueError, match="covariance of the clean state"):
        condition(bare, path, problem.likelihood, problem.y, JacobianFree(covariance="clean"), event_dims=1)(
            torch.zeros(2, 6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), Context()
        )
