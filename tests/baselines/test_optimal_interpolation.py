import math

import numpy as np
import pytest
import torch

from assimilate.baselines import optimal_interpolation
from assimilate.baselines.base import Baseline
from assimilate.baselines.kernels import correlation
from assimilate.baselines.optimal_interpolation import OptimalInterpolation
from dynamics import CapabilityError, Coordinate, Field, Space, florence, florence_space
from observations import GaussianNoise, Likelihood, Mask, Observation, random_mask

KERNELS = ("exponential", "matern32", "matern52", "gaussian")


def plane(rows=12, columns=15):
    coords = {"y": Coordinate(np.arange(float(rows)), ("y",)), "x": Coordinate(np.arange(float(columns)), ("x",))}
    return Space((Field("r", "mm", ("y", "x")),), coords)


def covariance(space, variance, length, kernel):
    cells = space.positions()
    return variance * correlation(space.distance(cells, cells), length, kernel)


def fields(space, mean, variance, length, kernel, count, seed=0):
    """Draws of the Gaussian field, `(count, 1, 1, rows, columns)`."""
    matrix = covariance(space, variance, length, kernel)
    root = torch.linalg.cholesky(matrix + 1e-10 * torch.eye(len(matrix), dtype=torch.float64))
    z = torch.randn(count, len(matrix), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (mean + z @ root.T).reshape(count, 1, *space.event_shape)


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_conditional_of_a_gaussian_field(kernel, monkeypatch):
    space = plane()
    method = OptimalInterpolation(space, 0.7, 1.5, 4.0, kernel)
    assert isinstance(method, Baseline)
    index = torch.tensor([3, 17, 40, 41, 90, 133, 170])
    std = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.5, 0.05, 0.2], dtype=torch.float64)
    likelihood = Likelihood(Mask(space, index), GaussianNoise(std=std))
    y = torch.randn(2, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[1, 0, 2] = math.nan
    matrix = covariance(space, 1.5, 4.0, kernel)
    for chunk in (4_000_000, 70):
        monkeypatch.setattr(optimal_interpolation, "CHUNK_NUMBERS", chunk)
        method = OptimalInterpolation(space, 0.7, 1.5, 4.0, kernel)
        estimate = method.estimate(Observation(likelihood, y), 0.0)
        for e in range(2):
            seen = ~torch.isnan(y[e, 0])
            places = index[seen]
            gain = matrix[:, places] @ torch.linalg.inv(matrix[places][:, places] + torch.diag(std[seen] ** 2))
            mean = 0.7 + gain @ (y[e, 0, seen] - 0.7)
            variance = torch.diagonal(matrix - gain @ matrix[places])
            torch.testing.assert_close(estimate.mean[e].flatten(), mean)
            torch.testing.assert_close(estimate.std[e].flatten(), variance.sqrt(), atol=1e-7, rtol=1e-6)


def test_its_spread_is_its_error():
    """Calibrated where the field is what it says: mean squared error / variance = 1 over cells and draws."""
    space = plane()
    truth = fields(space, 0.0, 2.0, 5.0, "exponential", 200)
    operator = random_mask(space, 0.1, seed=0)
    noise = 0.3 * torch.randn(
        200, 1, operator.obs_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.3)), operator(truth) + noise)
    estimate = OptimalInterpolation(space, 0.0, 2.0, 5.0).estimate(seen, 0.0)
    ratio = ((estimate.mean - truth[:, 0]) / estimate.std).square().mean((1, 2, 3))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 200**0.5


@pytest.mark.parametrize("method", ["likelihood", "variogram"])
@pytest.mark.parametrize("kernel", ["exponential", "matern32"])
def test_fit_finds_the_covariance(kernel, method):
    space = plane(20, 20)
    truth = fields(space, 1.0, 0.8, 3.0, kernel, 60, seed=2)
    operator = random_mask(space, 0.25, seed=1)
    noise = 0.1 * torch.randn(60, 1, 100, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    likelihood = Likelihood(operator, GaussianNoise(std=0.1))
    values = operator(truth) + noise
    values[:30, 0, 5] = math.nan
    seen = [Observation(likelihood, values[:30]), *(Observation(likelihood, v[0]) for v in values[30:]), None]
    fit = OptimalInterpolation.fit(seen, space, kernel=kernel, method=method)
    # 60 fields of 20^2 cells hold about 60 (20 / (2 * 3))^2 = 670 independent patches: 5 sqrt(2 / 670) = 0.27 for
    # variance and length; the mean to 5 sqrt(0.8 / 670) = 0.17.
    assert abs(fit.variance / 0.8 - 1) < 0.27 and abs(fit.length / 3.0 - 1) < 0.27
    assert abs(fit.mean - 1.0) < 0.17
    other = OptimalInterpolation.fit_fields(truth, space, kernel=kernel, method=method)
    assert abs(other.variance / 0.8 - 1) < 0.27 and abs(other.length / 3.0 - 1) < 0.27


def test_several_fields_are_each_estimated_alone():
    one = plane()
    two = Space((Field("r", "mm", ("y", "x")), Field("t", "K", ("y", "x"))), one.coords)
    truth = torch.cat(
        [fields(one, m, s2, 3.0, "exponential", 20, seed=k) for k, (m, s2) in enumerate([(0, 1), (5, 4)])], 2
    )
    # Other cells for each field, one value missing.
    index = torch.cat([torch.arange(0, 180, 7), 180 + torch.arange(3, 180, 11)])
    noise = torch.linspace(0.1, 0.4, index.numel(), dtype=torch.float64)
    likelihood = Likelihood(Mask(two, index), GaussianNoise(std=noise))
    y = likelihood.operator(truth)
    y[4, 0, 30] = math.nan
    seen = Observation(likelihood, y)
    both = OptimalInterpolation.fit([seen], two)
    assert both == OptimalInterpolation(two, both.mean, both.variance, both.length)
    estimate = both.estimate(seen, 0.0)
    for channel, part in enumerate((index < 180, index >= 180)):
        alone = Observation(Likelihood(Mask(one, index[part] % 180), GaussianNoise(std=noise[part])), y[..., part])
        single = OptimalInterpolation.fit([alone], one)
        # The missing value of one field changes the order in which times are summed.
        assert tuple(single.law(0)) == pytest.approx(tuple(both.law(channel)), rel=1e-6)
        for found, expected in zip(estimate, single.estimate(alone, 0.0), strict=True):
            torch.testing.assert_close(found[:, channel], expected[:, 0], rtol=0, atol=1e-5)
    whole = OptimalInterpolation.fit_fields(truth, two)
    parts = [OptimalInterpolation.fit_fields(truth[:, :, [k]], one).law(0) for k in range(2)]
    assert [whole.law(0), whole.law(1)] == parts
    with pytest.raises(ValueError, match="length has 3 numbers; the state has 2 channels"):
        OptimalInterpolation(two, 0.0, 1.0, (1.0, 2.0, 3.0))


def test_nothing_observed_is_the_prior():
    space = plane()
    method = OptimalInterpolation(space, 0.4, 2.25, 3.0)
    likelihood = Likelihood(Mask(space, torch.tensor([1, 2])), GaussianNoise(std=0.1))
    for seen in (None, Observation(likelihood, torch.full((2,), math.nan))):
        estimate = method.estimate(seen, 0.0)
        assert (estimate.mean == 0.4).all() and (estimate.std == 1.5).all()


def test_weights_are_kept_while_the_places_stay(monkeypatch):
    space = plane()
    method = OptimalInterpolation(space, 0.0, 1.0, 3.0)
    calls = []
    original = OptimalInterpolation._weights
    monkeypatch.setattr(OptimalInterpolation, "_weights", lambda s, *given: calls.append(1) or original(s, *given))
    likelihood = Likelihood(Mask(space, torch.arange(0, 180, 9)), GaussianNoise(std=0.1))
    for k in range(4):
        method.estimate(Observation(likelihood, torch.randn(20, generator=torch.Generator().manual_seed(k))), float(k))
    assert len(calls) == 1


def test_florence_as_measured_for_the_project():
    """Issue 2: simple kriging, exponential covariance, range 30 cells (120 km): RMSE 0.217 at 10 % of the cells."""
    space = florence_space()
    truth = space.to_tensor(florence())
    operator = random_mask(space, 0.1, seed=0)
    noise = 0.05 * torch.randn(23, 1, operator.obs_size, generator=torch.Generator().manual_seed(0))
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.05)), operator(truth[:, None]) + noise)
    method = OptimalInterpolation(space, float(seen.y.mean()), float(seen.y.var()), 120.0)
    error = (method.estimate(seen, 0.0).mean - truth).square().mean().sqrt()
    # The scatter over gauge draws is 0.002.
    assert abs(error - 0.217) < 3 * 0.002


def test_what_it_refuses():
    space = plane()
    with pytest.raises(ValueError, match="length is -1"):
        OptimalInterpolation(space, 0.0, 1.0, -1.0)
    with pytest.raises(ValueError, match="exponential, matern32"):
        OptimalInterpolation(space, 0.0, 1.0, 1.0, "spherical")
    operator = Mask(space, torch.arange(30))
    full = Likelihood(operator, GaussianNoise(covariance=torch.eye(30)))
    with pytest.raises(CapabilityError, match="full covariance"):
        OptimalInterpolation(space, 0.0, 1.0, 1.0).estimate(Observation(full, torch.zeros(30)), 0.0)
    flat = Observation(Likelihood(operator, GaussianNoise(std=0.1)), torch.ones(30))
    with pytest.raises(ValueError, match="all values are equal"):
        OptimalInterpolation.fit([flat], space)
    # White noise has no correlation that a smooth kernel could show.
    white = torch.randn(10, 1, 30, generator=torch.Generator().manual_seed(0))
    rough = Observation(Likelihood(operator, GaussianNoise(std=0.1)), white)
    with pytest.raises(ValueError, match="rougher than the kernel"):
        OptimalInterpolation.fit([rough], space, kernel="gaussian")
