"""Velocity covariances against derivatives of their potentials; the exact conditional; the fit; what it refuses."""

import math

import numpy as np
import pytest
import torch

from assimilate.baselines import divergence_free
from assimilate.baselines.base import Baseline
from assimilate.baselines.divergence_free import DivergenceFreeInterpolation
from assimilate.baselines.velocity_kernels import Components, VelocityLaw, covariance
from dynamics import CapabilityError, Coordinate, Field, Space, SpaceMismatch
from observations import BlockMean, GaussianNoise, Likelihood, Mask, Matrix, Observation, Stations, random_mask

KERNELS = ("exponential", "matern32", "matern52", "gaussian")


def plane(rows=9, columns=11, spacing=1.0, **settings):
    coords = {
        dim: Coordinate(spacing * np.arange(float(size)), (dim,), "mm") for dim, size in (("y", rows), ("x", columns))
    }
    return Space(tuple(Field(name, "m/s", ("y", "x")) for name in "uv"), coords, **settings)


def of_state(space):
    places = space.positions()
    return Components(places.repeat(2, 1), torch.arange(2).repeat_interleave(len(places)))


def draws(space, law, kernel, count, seed):
    """Draws of the velocity, `(count, 1, 2, *grid)`."""
    every = of_state(space)
    root = torch.linalg.cholesky(covariance(every, every, law, kernel) + 1e-10 * torch.eye(space.size).double())
    z = torch.randn(count, space.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean = torch.tensor(law.mean, dtype=torch.float64).repeat_interleave(space.size // 2)
    return (mean + z @ root.T).reshape(count, 1, *space.event_shape)


def potential(kernel, length):
    """The correlation of the stream function whose velocity has f along the line between two places."""
    polynomial = {
        "exponential": lambda a: 1 + a,
        "matern32": lambda a: 1 + a + a**2 / 3,
        "matern52": lambda a: 1 + a + 2 * a**2 / 5 + a**3 / 15,
    }
    rate = {"exponential": 1.0, "matern32": math.sqrt(3), "matern52": math.sqrt(5)}

    def of(apart):
        z = torch.linalg.vector_norm(apart) / length
        if kernel == "gaussian":
            return length**2 * torch.exp(-0.5 * z**2)
        return length**2 * polynomial[kernel](rate[kernel] * z) * torch.exp(-rate[kernel] * z)

    return of


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariances_are_derivatives_of_the_potentials(kernel):
    """U = dpsi/dy, v = -dpsi/dx; u = dchi/dx, v = dchi/dy: minus the second derivatives of their covariance."""
    apart = torch.tensor([0.7, -1.9], dtype=torch.float64)
    yy, yx, xx = (lambda h: (h[0, 0], h[0, 1], h[1, 1]))(
        torch.autograd.functional.hessian(potential(kernel, 1.3), apart)
    )
    stream = torch.stack([torch.stack([-yy, yx]), torch.stack([yx, -xx])])
    gradient = torch.stack([torch.stack([-xx, -yx]), torch.stack([-yx, -yy])])
    here = Components(torch.zeros(2, 2, dtype=torch.float64), torch.arange(2))
    there = Components(apart.expand(2, 2), torch.arange(2))
    for share in (0.0, 0.3, 1.0):
        found = covariance(here, there, VelocityLaw((0.0, 0.0), 2.0, 1.3, share, 0.4), kernel)
        torch.testing.assert_close(found, 2.0 * ((1 - share) * stream + share * gradient), rtol=1e-10, atol=1e-12)
        at_one_place = covariance(here, here, VelocityLaw((0.0, 0.0), 2.0, 1.3, share, 0.4), kernel)
        torch.testing.assert_close(at_one_place, 2.4 * torch.eye(2, dtype=torch.float64))


def test_it_is_the_conditional_of_a_gaussian_velocity(monkeypatch):
    space = plane()
    law = VelocityLaw((0.4, -0.2), 1.5, 2.5, 0.1, 0.05)
    # A gauge of u alone, one of v alone, and places with both.
    index = torch.tensor([3, 17, 40, 41, 90, 99 + 17, 99 + 40, 99 + 60])
    std = torch.linspace(0.1, 0.5, 8, dtype=torch.float64)
    likelihood = Likelihood(Mask(space, index), GaussianNoise(std=std))
    y = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[1, 0, 2] = math.nan
    every = of_state(space)
    matrix = covariance(every, every, law, "matern32")
    mean_of = torch.tensor(law.mean, dtype=torch.float64)
    for chunk in (4_000_000, 70):
        monkeypatch.setattr(divergence_free, "CHUNK_NUMBERS", chunk)
        method = DivergenceFreeInterpolation(space, law.mean, 1.5, 2.5, divergent=0.1, nugget=0.05)
        assert isinstance(method, Baseline)
        estimate = method.estimate(Observation(likelihood, y), 0.0)
        for e in range(2):
            seen = ~torch.isnan(y[e, 0])
            at = index[seen]
            gain = matrix[:, at] @ torch.linalg.inv(matrix[at][:, at] + torch.diag(std[seen] ** 2))
            mean = mean_of[every.channels] + gain @ (y[e, 0, seen] - mean_of[every.channels[at]])
            variance = torch.diagonal(matrix - gain @ matrix[at])
            torch.testing.assert_close(estimate.mean[e].flatten(), mean)
            torch.testing.assert_close(estimate.std[e].flatten(), variance.sqrt(), atol=1e-7, rtol=1e-6)


def test_the_estimate_has_no_divergence():
    """Five gauges on a fine grid: central differences are off by h^2 / 6 of third derivatives, far below 1 %."""
    space = plane(41, 41, spacing=0.05)
    operator = Mask(space, np.eye(1681, dtype=bool)[[50, 400, 900, 1250, 1600]].any(0).reshape(41, 41))
    y = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.01)), y)
    rms = {}
    for share in (0.0, 1.0):
        method = DivergenceFreeInterpolation(space, (0.0, 0.0), 1.0, 1.0, kernel="gaussian", divergent=share)
        u, v = method.estimate(seen, 0.0).mean[0]
        divergence = (u[1:-1, 2:] - u[1:-1, :-2] + v[2:, 1:-1] - v[:-2, 1:-1]) / 0.1
        rotation = (v[1:-1, 2:] - v[1:-1, :-2] - u[2:, 1:-1] + u[:-2, 1:-1]) / 0.1
        rms[share] = [float(part.square().mean().sqrt()) for part in (divergence, rotation)]
    assert rms[0.0][0] < 0.01 * rms[0.0][1] and rms[1.0][1] < 0.01 * rms[1.0][0], rms


def test_at_one_half_components_are_independent():
    space = plane()
    likelihood = Likelihood(Mask(space, torch.tensor([20, 50, 70])), GaussianNoise(std=0.1))
    seen = Observation(likelihood, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    for share, independent in ((0.5, True), (0.0, False)):
        method = DivergenceFreeInterpolation(space, (0.0, 0.7), 1.0, 2.0, divergent=share)
        v = method.estimate(seen, 0.0).mean[0, 1]
        assert torch.allclose(v, torch.full_like(v, 0.7), atol=1e-12) == independent


def test_turning_the_plane_turns_the_estimate():
    """A quarter turn: (x, y) -> (-y, x), (u, v) -> (-v, u); cells stay cells."""
    space = plane(9, 9)
    y = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = random_mask(space, 0.15, 4)
    hidden = torch.ones(162, dtype=torch.bool)
    hidden[operator.index] = False
    method = DivergenceFreeInterpolation(space, (0.0, 0.0), 1.0, 2.0, divergent=0.2, nugget=0.1)
    gauges = y.masked_fill(hidden.reshape(2, 9, 9), math.nan)
    whole = Likelihood(Mask(space, torch.arange(162)), GaussianNoise(std=0.1))

    def turned(field):
        u, v = field.rot90(-1, (-2, -1))  # rows are y upwards: this is a quarter turn to the left
        return torch.stack([-v, u])

    found = method.estimate(Observation(whole, gauges.flatten()), 0.0).mean[0]
    other = method.estimate(Observation(whole, turned(gauges).flatten()), 0.0).mean[0]
    torch.testing.assert_close(turned(found), other, rtol=0, atol=1e-10)


def test_its_spread_is_its_error_and_the_fit_finds_the_law():
    space = plane(14, 14)
    law = VelocityLaw((0.6, -0.3), 1.2, 3.0, 0.1, 0.05)
    truth = draws(space, law, "matern32", 40, 5)
    operator = random_mask(space, 0.4, seed=1)
    rng = torch.Generator().manual_seed(6)
    noise = 0.1 * torch.randn(40, 1, operator.obs_size, generator=rng, dtype=torch.float64)
    likelihood = Likelihood(operator, GaussianNoise(std=0.1))
    values = operator(truth) + noise
    values[:20, 0, 3] = math.nan
    seen = [Observation(likelihood, values[:20]), *(Observation(likelihood, v[0]) for v in values[20:]), None]
    fit = DivergenceFreeInterpolation.fit(seen, space)
    # 40 draws of 14^2 cells hold about 40 (14 / (2 * 3))^2 = 220 independent patches of two components:
    # 5 sqrt(2 / 440) = 0.34 for variance and length, 5 sqrt(1.2 / 220) = 0.37 for the mean; the share of 0.1 and the
    # nugget of 0.05 rest on all 156 values a draw, the nearest of which are a third of a length apart.
    assert abs(fit.variance / 1.2 - 1) < 0.34 and abs(fit.length / 3.0 - 1) < 0.34
    assert np.abs(np.array(fit.mean) - law.mean).max() < 0.37
    assert abs(fit.divergent - 0.1) < 0.05 and abs(fit.nugget - 0.05) < 0.03
    estimate = fit.estimate(Observation(likelihood, values), 0.0)
    ratio = ((estimate.mean - truth[:, 0]) / estimate.std).square().mean((1, 2, 3))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 40**0.5
    # The right law beats the wrong one (independent components) in mean squared error.
    wrong = DivergenceFreeInterpolation(space, law.mean, 1.2, 3.0, divergent=0.5, nugget=0.05)
    errors = [(m.estimate(Observation(likelihood, values), 0.0).mean - truth[:, 0]).square() for m in (fit, wrong)]
    gain = (errors[1] - errors[0]).mean((1, 2, 3))
    assert gain.mean() > 5 * gain.std() / 40**0.5


def test_nothing_observed_is_the_prior_and_rows_are_alone():
    space = plane(mask=np.arange(99).reshape(9, 11) == 7)
    method = DivergenceFreeInterpolation(space, (0.4, -1.0), 2.0, 3.0, nugget=0.25)
    operator = random_mask(space, 0.2, 0)
    likelihood = Likelihood(operator, GaussianNoise(std=0.1))
    estimate = method.estimate(None, 0.0)
    assert (estimate.std[0, :, 3] == 1.5).all() and (estimate.mean[0, 1, 3] == -1.0).all()
    assert (estimate.mean[0, :, 0, 7] == 0).all() and (estimate.std[0, :, 0, 7] == 0).all()
    y = torch.randn(3, 1, operator.obs_size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y[2] = math.nan
    together = method.estimate(Observation(likelihood, y), 0.0)
    for row in range(3):
        alone = method.estimate(Observation(likelihood, y[row : row + 1]), 0.0)
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row : row + 1], part, rtol=0, atol=1e-12)
    torch.testing.assert_close(together.mean[2:].float(), estimate.mean)


def test_what_it_refuses():
    space = plane()
    for settings, message in (
        ({"length": 0.0}, "length is 0"),
        ({"divergent": 1.5}, "divergent is 1.5; expected a number from 0 to 1"),
        ({"nugget": -1.0}, "nugget is -1"),
        ({"kernel": "cubic"}, "exponential, matern32"),
        ({"mean": (0.0,)}, "expected 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            DivergenceFreeInterpolation(
                **{"space": space, "mean": (0.0, 0.0), "variance": 1.0, "length": 1.0, **settings}
            )
    one = Space(space.fields[:1], space.coords)
    other_units = Space((space.fields[0], Field("v", "mm/s", ("y", "x"))), space.coords)
    for wrong in (one, other_units, plane(periodic=("x",)), Space.scalars("u", "v")):
        with pytest.raises(CapabilityError, match="divergence-free interpolation works on"):
            DivergenceFreeInterpolation(wrong, (0.0, 0.0), 1.0, 1.0)
    axes = {"y": space.coords["y"], "x": Coordinate(np.arange(11.0), ("x",), "s")}
    with pytest.raises(SpaceMismatch, match="different units"):
        DivergenceFreeInterpolation(Space(space.fields, axes), (0.0, 0.0), 1.0, 1.0)
    likelihood = Likelihood(Mask(space, torch.arange(30)), GaussianNoise(std=0.1))
    with pytest.raises(ValueError, match="all values are equal"):
        DivergenceFreeInterpolation.fit([Observation(likelihood, torch.ones(30))], space)
    with pytest.raises(ValueError, match="at least 3"):
        DivergenceFreeInterpolation.fit([None], space)


def test_channels_of_values():
    from assimilate.baselines.base import channels_of

    space = plane()
    assert channels_of(Mask(space, torch.tensor([3, 100, 5]))).tolist() == [0, 1, 0]
    assert channels_of(Stations(space, [[0.5, 0.5], [3.0, 2.0]], "bilinear")).tolist() == [0, 0, 1, 1]
    assert channels_of(Stations(space, [[0.5, 0.5]], channels="v")).tolist() == [1]
    tall = plane(8, 10)
    hidden = plane(8, 10, mask=np.arange(80).reshape(8, 10) < 20)
    assert channels_of(BlockMean(tall, 2)).tolist() == [0] * 20 + [1] * 20
    assert channels_of(BlockMean(hidden, 2)).reshape(2, -1)[:, 5:].tolist() == [[0] * 15, [1] * 15]
    speed = Matrix(space, torch.ones(1, 198) / 198)
    with pytest.raises(CapabilityError, match="no single channel"):
        channels_of(speed)
