"""What is enforced on noisy states, and gradients from evaluations alone, against linear algebra and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.condition import condition
from assimilate.posterior.corrections.null_space import MeasuredPart
from assimilate.posterior.corrections.projection import AdjointStep, NoisyState, Replacement
from assimilate.posterior.guidance import DPS, ZeroOrder
from assimilate.posterior.paths import VE, VP
from assimilate.posterior.predictors import Context
from benchmarks.scorecard.problems import gaussian_problem
from dynamics.random import Streams, normal
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", [VE(smallest=0.0, largest=5.0), VP()], ids=["ve", "vp"])
def test_replacement_fixes_the_seen_part_and_leaves_the_rest(path):
    array, x, y = randn(3, 6), randn(2, 4, 6, seed=1), randn(2, 1, 3, seed=2)
    replace = Replacement(MeasuredPart(Matrix((6,), array), y))
    s = torch.tensor(0.6, dtype=torch.float64)
    moved = replace(x, s, path, torch.Generator().manual_seed(7))
    c = path.coefficients(s, x)
    expected = c.beta * y + c.noise * randn(2, 4, 6, seed=7) @ array.T
    torch.testing.assert_close(moved @ array.T, expected)
    null = torch.eye(6, dtype=torch.float64) - torch.linalg.pinv(array) @ array
    torch.testing.assert_close((moved - x) @ null.T, torch.zeros_like(x), rtol=0, atol=1e-10)
    half = Replacement(replace.part, strength=0.5)(x, s, path, torch.Generator().manual_seed(7))
    torch.testing.assert_close(half, 0.5 * (x + moved))


def test_adjoint_steps_descend_on_the_misfit():
    array, x, y = randn(3, 6), randn(5, 6, seed=1), randn(3, seed=2)
    norm = float(torch.linalg.matrix_norm(array, 2))
    path, s = VE(), torch.tensor(0.5, dtype=torch.float64)
    projection = AdjointStep(MeasuredPart(Matrix((6,), array), y), norm)
    after = projection(x, s, path, torch.Generator())
    torch.testing.assert_close(after, x + (y - x @ array.T) @ array / norm**2)
    assert bool(((y - after @ array.T).norm(dim=-1) < (y - x @ array.T).norm(dim=-1)).all())
    # Equal singular values: one step is the projection, whatever they are.
    equal = 3.0 * torch.linalg.qr(array.T)[0].T
    exact = AdjointStep(MeasuredPart(Matrix((6,), equal), y), 3.0)(x, s, path, torch.Generator())
    torch.testing.assert_close(exact @ equal.T, y.expand(5, 3))
    assert AdjointStep(MeasuredPart(Matrix((6,), 0 * array), y), 0.0)(x, s, path, torch.Generator()) is x


@pytest.mark.parametrize("path", [VE(), VP()], ids=["ve", "vp"])
def test_noisy_state_is_the_gradient_of_its_own_likelihood(path):
    problem = gaussian_problem()
    a = problem.likelihood.operator.matrix()
    y = torch.tensor([problem.y[0], torch.nan, problem.y[2]], dtype=torch.float64)
    x, t = randn(4, 6), torch.tensor(0.7, dtype=torch.float64)
    c = path.coefficients(t, x)
    clean = condition(problem.predictor(path), path, problem.likelihood, y, NoisyState(), event_dims=1)(x, t, Context())
    rows, rho2 = a[[0, 2]], float((c.noise / c.beta) ** 2)
    law = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), 0.04 * torch.eye(2, dtype=torch.float64) + rho2 * rows @ rows.T
    )
    leaf = x.clone().requires_grad_()
    log_prob = law.log_prob(y[[0, 2]] - leaf / c.beta @ rows.T).sum()
    expected = c.noise**2 / c.beta * torch.autograd.grad(log_prob, leaf)[0]
    torch.testing.assert_close(clean.mean - clean.unguided.mean, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["score", "norm"])
def test_zero_order_tends_to_dps(form):
    # The relative error of v is sqrt((d + 1) / J) in expectation; J = 64 and 4096 differ by a factor of 8.
    problem, path = gaussian_problem(), VE()
    x, t = randn(200, 6), torch.tensor(path.time(0.8), dtype=torch.float64)

    def shift(guidance):
        rng = torch.Generator().manual_seed(0)
        predictor = condition(
            problem.predictor(path), path, problem.likelihood, problem.y, guidance, event_dims=1, rng=rng
        )
        clean = predictor(x, t, Context())
        return clean.mean - clean.unguided.mean

    exact = shift(DPS(form=form))
    for draws in (64, 4096):
        error = shift(ZeroOrder(form=form, draws=draws)) - exact
        relative = math.sqrt(float(error.square().sum() / exact.square().sum()))
        assert 0.3 * math.sqrt(7 / draws) < relative < 2.0 * math.sqrt(7 / draws)


def test_zero_order_asks_for_random_numbers_and_minds_its_rows():
    problem, path = gaussian_problem(), VE()
    with pytest.raises(ValueError, match="rng"):
        condition(problem.predictor(path), path, problem.likelihood, problem.y, ZeroOrder(), event_dims=1)
    with pytest.raises(ValueError, match="radius"):
        ZeroOrder(radius=0.0)
    x, t = normal(Streams(5, 2, 10), (2, 10, 6), dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    y = problem.y + torch.arange(2).reshape(2, 1, 1)

    def shifted(rows, count, rng):
        guidance = ZeroOrder(draws=20)
        return condition(
            problem.predictor(path), path, problem.likelihood, y[:count], guidance, event_dims=1, rng=rng
        )(rows, t, Context()).mean

    few = shifted(x[:1, :4], 1, Streams(3, 1, 4))
    torch.testing.assert_close(shifted(x, 2, Streams(3, 2, 10))[:1, :4], few, rtol=1e-9, atol=1e-9)


def test_missing_values_change_nothing():
    array, x = randn(3, 6), randn(5, 6, seed=1)
    y = torch.tensor([0.4, torch.nan, 1.0], dtype=torch.float64)
    path, s = VE(), torch.tensor(0.5, dtype=torch.float64)
    rows = Matrix((6,), array[[0, 2]])
    for build in (lambda part: Replacement(part), lambda part: AdjointStep(part, norm=2.0)):
        gap = build(MeasuredPart(Matrix((6,), array), y, iterations=50))(x, s, path, torch.Generator().manual_seed(0))
        fewer = build(MeasuredPart(rows, y[[0, 2]]))(x, s, path, torch.Generator().manual_seed(0))
        torch.testing.assert_close(gap, fewer, rtol=1e-4, atol=1e-5)
    likelihood = Likelihood(Matrix((6,), array), GaussianNoise(0.2))
    problem = gaussian_problem()
    nothing = condition(
        problem.predictor(path), path, likelihood, torch.full_like(y, torch.nan), NoisyState(), event_dims=1
    )(x, s, Context())
    assert torch.equal(nothing.mean, nothing.unguided.mean)


def test_settings_are_checked():
    part = MeasuredPart(Matrix((6,), randn(3, 6)), randn(3))
    with pytest.raises(ValueError, match="strength"):
        Replacement(part, strength=1.5)
    with pytest.raises(ValueError, match="strength"):
        AdjointStep(part, norm=1.0, strength=2.0)
