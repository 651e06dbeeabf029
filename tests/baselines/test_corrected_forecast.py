"""The corrected forecast: closed forms, limits of the weight, the past, and tuning on a system with a known answer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from assimilate.baselines.corrected_forecast import CorrectedForecast
from assimilate.cards.execution import execute
from assimilate.cards.files import parse
from assimilate.filters.check import check_filter
from dynamics import LinearGaussian, simulate
from dynamics.errors import SpaceMismatch
from observations import Arctan, BlockMean, GaussianNoise, Likelihood, Mask, Matrix, Observation
from observations.heavy_tails import Laplace

DOUBLE = torch.float64
RING = LinearGaussian.ring(6)
RNG = torch.Generator().manual_seed(0)


def normals(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def closed_form(matrix, noise_variance, weight, background, y):
    """(H^T R^-1 H + weight)^-1 (H^T R^-1 y + weight x_b)."""
    pulled = matrix.T / noise_variance
    hessian = pulled @ matrix + weight * torch.eye(matrix.shape[1], dtype=DOUBLE)
    right = (pulled @ y[..., None]).squeeze(-1) + weight * background
    return torch.linalg.solve(hessian, right[..., None]).squeeze(-1)


def test_it_keeps_the_contract_of_a_filter():
    check_filter(lambda dynamics: CorrectedForecast(dynamics, 2.0))


def test_a_linear_correction_is_the_closed_form():
    matrix, std = normals(4, 6), torch.tensor([0.3, 0.5, 1.0, 0.2], dtype=DOUBLE)
    likelihood = Likelihood(Matrix(RING.space, matrix), GaussianNoise(std=std))
    background, y = normals(3, 2, 1, 6, seed=4), normals(3, 1, 4, seed=5)
    found = CorrectedForecast(RING, 1.7).correct(background, Observation(likelihood, y))
    expected = closed_form(matrix, std**2, 1.7, background.flatten(2), y.expand(3, 2, 4))
    # Conjugate gradients stop at a relative residual of 1e-6, in a system of condition below 1000.
    assert torch.allclose(found.flatten(2), expected, atol=1e-4)
    missing = y.clone()
    missing[0, 0, 1] = torch.nan
    found = CorrectedForecast(RING, 1.7).correct(background, Observation(likelihood, missing))
    keep = torch.tensor([0, 2, 3])
    expected = closed_form(matrix[keep], std[keep] ** 2, 1.7, background[0].flatten(1), y[0, :, keep].expand(2, 3))
    assert torch.allclose(found[0].flatten(1), expected, atol=1e-4)


def test_limits_of_the_weight():
    likelihood = Likelihood(Mask(RING.space, torch.tensor([0, 3])), GaussianNoise(std=0.5))
    background, y = normals(2, 1, 1, 6), normals(2, 1, 2, seed=8)
    observation = Observation(likelihood, y)
    forecast = CorrectedForecast(RING, 1e8).correct(background, observation)
    assert torch.allclose(forecast, background, atol=1e-6)
    through = CorrectedForecast(RING, 1e-8).correct(background, observation)
    assert torch.allclose(through[..., 0, [0, 3]], y, atol=1e-6)
    # What is not observed stays where the forecast put it: the background term knows no covariance.
    others = [1, 2, 4, 5]
    assert torch.equal(through[..., 0, others], background[..., 0, others])


def test_a_block_mean_moves_every_cell_of_the_block_alike():
    likelihood = Likelihood(BlockMean(RING.space, 3), GaussianNoise(std=0.5))
    background, y = normals(1, 1, 1, 6), normals(1, 1, *likelihood.operator.obs_shape, seed=2)
    shift = CorrectedForecast(RING, 2.0).correct(background, Observation(likelihood, y)) - background
    # One value of variance (1/2) / 3: gain (1/2) / 3 / ((1/2) / 3 + 0.25), times 1 for each cell.
    departure = y.reshape(1, 1, 2) - background.reshape(1, 1, 2, 3).mean(-1)
    gain = (0.5 / 3) / (0.5 / 3 + 0.25)
    assert torch.allclose(shift.reshape(1, 1, 2, 3), (gain * departure)[..., None].expand(1, 1, 2, 3), atol=1e-6)


@pytest.mark.parametrize("noise", [GaussianNoise(std=0.3), Laplace(scale=0.3)], ids=["gaussian", "laplace"])
def test_a_nonlinear_correction_is_where_the_gradient_vanishes(noise):
    likelihood = Likelihood(Arctan(RING.space), noise)
    background = normals(2, 3, 1, 6)
    y = (background.mean(1, keepdim=True) + 0.4).arctan()
    method = CorrectedForecast(RING, 2.0)
    found = method.correct(background, Observation(likelihood, y))

    def cost(x):
        return 1.0 * (x - background).square().sum((-1, -2)) - likelihood.log_prob(y, x)

    best = cost(found)
    for seed in range(5):
        # No neighbour is better; 1e-3 prior standard deviations is what the minimiser promises.
        assert bool((cost(found + 1e-2 * normals(2, 3, 1, 6, seed=seed)) > best - 1e-5).all())
    assert bool((best < cost(background)).all())
    alone = method.correct(background[1:, :1], Observation(likelihood, y[1:]))
    assert torch.allclose(alone, found[1:, :1], atol=1e-6)


@dataclass(frozen=True)
class SecondOrder:
    """x_k = 1.6 x_{k-1} - 0.9 x_{k-2}: a forecast that needs two states, and says when it has only one."""

    system: LinearGaussian
    frames: int = 2

    @property
    def space(self):
        return self.system.space

    @property
    def dt(self):
        return self.system.dt

    def prior(self, shape, **options):
        return self.system.prior(shape, **options)

    def step(self, x, time, *, rng):
        return 0.8 * x

    def next_state(self, x, time, past):
        return 1.6 * x - 0.9 * past[:, :, 0] if past.shape[2] else 0.8 * x


def test_earlier_analyses_are_handed_on():
    dynamics = SecondOrder(RING)
    method = CorrectedForecast(dynamics, 1.0)
    first = normals(2, 1, 1, 6)
    state, _ = method.step(method.init(first), None, 2 * RING.dt, rng=RNG)
    second = 0.8 * first
    assert torch.allclose(state.members, 1.6 * second - 0.9 * first)
    assert torch.equal(state.past, second.unsqueeze(2))
    likelihood = Likelihood(Mask(RING.space, torch.arange(6)), GaussianNoise(std=1.0))
    y = normals(2, 1, 6, seed=9)
    state, info = method.step(state, Observation(likelihood, y), 3 * RING.dt, rng=RNG)
    forecast = 1.6 * (1.6 * second - 0.9 * first) - 0.9 * second
    assert torch.allclose(info.background, forecast)
    # Weight and noise variance 1: halfway.
    assert torch.allclose(state.members, (forecast + y.unsqueeze(2)) / 2, atol=1e-6)
    assert torch.allclose(state.past[:, :, 0], 1.6 * second - 0.9 * first)


def steady(a: float, q: float, r: float) -> tuple[float, float]:
    """The best weight and its RMSE for x' = a x + q e, y = x + r v: those of the Kalman filter."""
    variance = q**2
    for _ in range(1000):
        analysed = variance * r**2 / (variance + r**2)
        variance = a**2 * analysed + q**2
    return 1 / variance, math.sqrt(analysed)


@pytest.mark.parametrize("a, q, r", [(0.9, 0.5, 0.5), (0.99, 0.1, 1.0)])
def test_tuning_finds_the_steady_gain(a, q, r):
    system = LinearGaussian.scalar(a, q)
    likelihood = Likelihood(Mask(system.space, torch.tensor([0])), GaussianNoise(std=r))
    observation = Observation(likelihood, torch.zeros(1))
    weight, rmse = steady(a, q, r)
    options = {"validation": system, "steps": 40, "experiments": 400, "spinup": 50, "initial_std": rmse}
    grid = [weight * 3.0**k for k in range(-2, 3)]
    found = CorrectedForecast.tuned(system, [observation], weights=grid, **options)
    # Started with the error of the steady state, each weight but the best moves away from it.
    assert found.weight == weight
    table = dict(found.tuning)
    assert list(table) == grid and table[weight] == min(table.values())
    # 16,000 errors, correlated over 10 steps at most: 2.5 % is four standard errors.
    assert table[weight] == pytest.approx(rmse, rel=0.03)
    assert table[grid[0]] > 1.1 * rmse and table[grid[-1]] > 1.1 * rmse
    assert "LinearGaussian" in found.validation


def test_tuning_looks_for_weights_itself_and_is_repeatable():
    system = LinearGaussian.scalar(0.9, 0.5)
    likelihood = Likelihood(Mask(system.space, torch.tensor([0])), GaussianNoise(std=0.5))
    options = {"validation": system, "steps": 15, "experiments": 100, "spinup": 50}
    first, again = (
        CorrectedForecast.tuned(system, [Observation(likelihood, torch.zeros(1))], **options) for _ in range(2)
    )
    assert first.tuning == again.tuning and len(first.tuning) == 9
    # Nine weights over a range of 4.6 in standard deviation are a factor of 1.6 or less apart.
    assert 1 / 1.7 < first.weight / steady(0.9, 0.5, 0.5)[0] < 1.7


def test_tuning_says_what_is_wrong(tmp_path):
    likelihood = Likelihood(Mask(RING.space, torch.tensor([0])), GaussianNoise(std=0.5))
    seen = [Observation(likelihood, torch.zeros(1))]
    with pytest.raises(SpaceMismatch, match="validation states have shape"):
        CorrectedForecast.tuned(RING, seen, validation=LinearGaussian.ring(5))
    with pytest.raises(ValueError, match="weights is empty"):
        CorrectedForecast.tuned(RING, seen, validation=RING, weights=[], steps=2, spinup=0)
    with pytest.raises(ValueError, match="needs an analysis"):
        CorrectedForecast.tuned(RING, [], validation=RING, steps=2, spinup=0)
    with pytest.raises(ValueError, match="weight is 0"):
        CorrectedForecast(RING, 0.0)
    file = tmp_path / "held-out.nc"
    simulate(RING, steps=4, trajectories=3, seed=5).to_netcdf(file)
    found = CorrectedForecast.tuned(RING, seen, validation=str(file), weights=[1.0, 10.0], steps=4)
    assert found.validation == str(file) and len(found.tuning) == 2


def test_a_card_tunes_it_on_a_simulator_of_its_own(tmp_path):
    ring = {"type": "LinearGaussian", "preset": "ring"}
    card = parse(
        {
            "title": "linear",
            "seed": 3,
            "truth": {"dynamics": ring, "steps": 12, "experiments": 4},
            "observations": {"noise": 0.5},
            "method": [
                {"type": "KalmanFilter", "members": 20},
                {
                    "type": "CorrectedForecast", "preset": "tuned", "label": "tuned", "members": 1,
                    "validation": {**ring}, "experiments": 4, "steps": 10, "spinup": 5,
                },
            ],
            "scores": {"names": ["rmse"]},
        }
    )
    outcome = execute(card, tmp_path, name="linear")
    assert not outcome.failures, outcome.failures
    exact, tuned = (outcome.scores[label]["rmse"] for label in outcome.labels)
    # All cells are observed with an error of 0.5: a forecast of any worth makes less of it.
    assert exact < tuned < 0.5
