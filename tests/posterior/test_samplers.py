"""Samplers: unconditional moments, order of convergence, independence of rows."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.paths import VE, VP, FlowMatching, Interpolant
from assimilate.posterior.predictors import Context, GaussianPredictor
from assimilate.posterior.samplers import Ancestral, EulerMaruyama, Heun, PredictorCorrector
from assimilate.posterior.time_grids import ratio_times, uniform_times
from dynamics.random import Streams, normal

MEAN = torch.tensor([0.5], dtype=torch.float64)


def draw(path, sampler, times, n, *, std=1.0, seed=0, streams=None):
    predictor = GaussianPredictor(torch.tensor([[std**2]], dtype=torch.float64), path, MEAN)
    rng = torch.Generator().manual_seed(seed) if streams is None else streams
    shape = (n, 1) if streams is None else (*streams.rows, 1)
    z = normal(rng, shape, dtype=torch.float64)
    base = torch.full(shape, -0.3, dtype=torch.float64) if isinstance(path, Interpolant) else None
    c = path.coefficients(times[0], z)
    start = c.noise * z if base is None else c.alpha * base + c.noise * z
    return sampler(predictor, path, start, times=times, event_dims=1, rng=rng, context=Context(base=base)).x


CASES = [
    (VP(), Ancestral(), None),
    (VP(), EulerMaruyama(), None),
    (VE(largest=40.0), Ancestral(eta=0.5), None),
    (FlowMatching(), Ancestral(), None),
    (Interpolant(), EulerMaruyama("sigma"), uniform_times(400, dtype=torch.float64)),
    (Interpolant(), EulerMaruyama("foellmer"), uniform_times(400, dtype=torch.float64)),
    (Interpolant(power=2), EulerMaruyama("sigma"), uniform_times(400, dtype=torch.float64)),
    (Interpolant(power=2), Ancestral(), None),
]


@pytest.mark.parametrize(("path", "sampler", "times"), CASES)
def test_unconditional_moments(path, sampler, times):
    # 400 steps leave at most 3 % of the variance (measured 0.5-2.5 %); sampling adds 5 standard errors.
    n = 20_000
    if times is None:
        start = isinstance(path, Interpolant)
        times = ratio_times(path, 400, largest=40.0, smallest=0.005, start=start, dtype=torch.float64)
    x = draw(path, sampler, times, n)
    assert abs(float(x.mean() - MEAN)) < 0.01 + 5 / math.sqrt(n)
    assert abs(float(x.var()) - 1) < 0.03 + 5 * math.sqrt(2 / n)


def test_the_bias_of_langevin_corrections_falls_with_their_step():
    # Unadjusted Langevin moves inflate the variance of a unit Gaussian by about tau / 2 at every level. 64 values: the
    # rule's step length needs a mean over many.
    path, d, n = VP(), 64, 2000
    predictor = GaussianPredictor(torch.eye(d, dtype=torch.float64), path, torch.full((d,), 0.5, dtype=torch.float64))
    times = ratio_times(path, 100, largest=40.0, smallest=0.01, start=False, dtype=torch.float64)
    excess = []
    for tau in (0.1, 0.01):
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(n, d, generator=rng, dtype=torch.float64)
        sampler = PredictorCorrector(Ancestral(eta=0.0), corrections=1, tau=tau)
        x = sampler(predictor, path, x, times=times, event_dims=1, rng=rng).x
        assert abs(float(x.mean()) - 0.5) < 0.01 + 5 / math.sqrt(n * d)
        excess.append(float(x.var()) - 1)
    assert 0.03 < excess[0] < 0.12
    assert abs(excess[1]) < 0.03


@pytest.mark.parametrize("path", [VP(), Interpolant(), Interpolant(power=2)])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_right_clean_variance_makes_any_number_of_steps_exact(path, steps):
    n = 40_000
    start = isinstance(path, Interpolant)
    times = uniform_times(steps, dtype=torch.float64) if start else torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    for variance in ("upper", "clean"):
        x = draw(path, Ancestral(variance=variance), times, n)
        assert abs(float(x.mean() - MEAN)) < 0.002 + 5 / math.sqrt(n)
        assert abs(float(x.var()) - 1) < 0.002 + 5 * math.sqrt(2 / n)


@pytest.mark.parametrize(("sampler", "order"), [(Ancestral(eta=0.0), 1), (Heun(), 2)])
def test_order_of_convergence_of_the_deterministic_samplers(sampler, order):
    # The probability flow maps z to quantiles: x(1) = mean + std(1) / std(0) (x(0) - mean), known exactly on VE.
    path, errors = VE(smallest=0.05, largest=5.0), []
    predictor = GaussianPredictor(torch.ones(1, 1, dtype=torch.float64), path, MEAN)
    x = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    exact = MEAN + math.sqrt((1 + 0.05**2) / (1 + 5.0**2)) * (x - MEAN)
    for steps in (40, 80, 160):
        times = uniform_times(steps, dtype=torch.float64)
        out = sampler(predictor, path, x, times=times, event_dims=1, rng=torch.Generator()).x
        errors.append(float((out - exact).abs().max()))
    observed = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert observed[-1] == pytest.approx(order, abs=0.15)


def test_rows_do_not_depend_on_other_rows():
    times = ratio_times(Interpolant(), 8, largest=20.0, smallest=0.05, dtype=torch.float64)
    small = draw(Interpolant(), Ancestral(), times, 0, streams=Streams(7, 2, 3))
    large = draw(Interpolant(), Ancestral(), times, 0, streams=Streams(7, 4, 9))
    torch.testing.assert_close(large[:2, :3], small, rtol=1e-12, atol=1e-12)


def test_samplers_without_weights_say_so():
    times = uniform_times(4, first=0.1, last=0.9, dtype=torch.float64)
    predictor = GaussianPredictor(torch.ones(1, 1, dtype=torch.float64), VP(), MEAN)
    x = torch.zeros(3, 1, dtype=torch.float64)
    for sampler in (Heun(), PredictorCorrector()):
        with pytest.raises(ValueError, match="no importance weight"):
            sampler(predictor, VP(), x, times=times, event_dims=1, rng=torch.Generator(), weighted=True)
    with pytest.raises(ValueError, match="eta"):
        Ancestral(eta=2.0)
