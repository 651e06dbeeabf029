"""The extended, iterated and unscented Kalman filters: Kalman's answer on linear systems, closed forms elsewhere."""

import math
from dataclasses import dataclass

import pytest
import torch

from assimilate.filters.base import Diverged
from assimilate.filters.check import check_filter
from assimilate.filters.extended_kalman import ExtendedKalmanFilter
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.square_root import array_update, triangular
from assimilate.filters.unscented_kalman import UnscentedKalmanFilter
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Space, Streams
from dynamics.covariance import ScaledIdentity
from observations import Arctan, Function, GaussianNoise, Identity, Laplace, Likelihood, Mask, Observation

RING = LinearGaussian.ring(6)
DOUBLE = torch.float64
FACTORIES = {
    "EKF": ExtendedKalmanFilter,
    "iterated": lambda d, **k: ExtendedKalmanFilter(d, iterations=4, **k),
    "UKF": UnscentedKalmanFilter,
    "UKF with a centre": lambda d, **k: UnscentedKalmanFilter(d, centre_weight=0.4, **k),
}
EVERY = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


@dataclass(frozen=True)
class Square:
    """x -> x^2 / 4 in one variable, without noise."""

    dt: float = 1.0
    space: Space = Space.scalars("x")

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        raise NotImplementedError

    def step(self, x, time, *, rng):
        return x.square() / 4

    def moments(self, x, time):
        return self.step(x, time, rng=None), ScaledIdentity(torch.zeros((), dtype=x.dtype), (1,))

    def log_prob(self, x_next, x, time):
        raise NotImplementedError

    def prior_moments(self, *, dtype, device):
        return torch.tensor([3.0], dtype=dtype), ScaledIdentity(torch.tensor(0.25, dtype=dtype), (1,))


@EVERY
def test_contract(factory):
    check_filter(factory, members=400)


@EVERY
def test_linear_systems_give_the_kalman_filter(factory):
    likelihood = Likelihood(Mask(RING.space, torch.arange(0, 6, 2)), GaussianNoise(std=0.3))
    y = torch.randn(4, 2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    y[1, 0, 0, 1], y[2, 1] = math.nan, math.nan
    exact, method = KalmanFilter(RING), factory(RING, prior="dynamics")
    members = torch.zeros(2, 3, 1, 6, dtype=DOUBLE)
    wanted, found = exact.init(members), method.init(members)
    for k in range(4):
        # Two steps of the dynamics between observations.
        args = Observation(likelihood, y[k]), 2.0 * (k + 1)
        wanted, known = exact.step(wanted, *args, rng=Streams(0, 2, 3).at(k))
        found, info = method.step(found, *args, rng=Streams(0, 2, 3).at(k))
        torch.testing.assert_close(found.mean, wanted.mean, atol=1e-10, rtol=0)
        torch.testing.assert_close(found.covariance, wanted.covariance, atol=1e-10, rtol=0)
        torch.testing.assert_close(info.log_evidence, known.log_evidence, atol=1e-9, rtol=0)
    assert torch.equal(info.background, found.members) is False


def test_the_root_keeps_what_the_covariance_loses():
    # Two directions seen through their sum with an error 1e-9 of the spread: P = I - 1/2 (1 - 5e-19) ones.
    root = torch.eye(2, dtype=DOUBLE)[None]
    spread = torch.full((1, 2, 1), 1e9, dtype=DOUBLE)
    found = array_update(root, spread, torch.zeros(1, 1, dtype=DOUBLE)).root[0]
    along, across = torch.tensor([1.0, 1.0], dtype=DOUBLE) / 2**0.5, torch.tensor([1.0, -1.0], dtype=DOUBLE) / 2**0.5
    # Exact: 1 / sqrt(1 + 2e18) along. The covariance form leaves 1e-8, the root of the rounding error of 1.
    assert abs(float((found @ along).norm()) - 1 / (1 + 2e18) ** 0.5) < 1e-14
    assert abs(float((found @ across).norm()) - 1) < 1e-14


def test_fewer_directions_than_variables():
    rows = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    spread = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    root = triangular(rows)
    torch.testing.assert_close(root.mT @ root, rows.mT @ rows)
    found = array_update(rows, spread, torch.ones(2, 2, dtype=DOUBLE))
    inner = torch.linalg.inv(torch.eye(2, dtype=DOUBLE) + spread.mT @ spread)
    gain = rows.mT @ spread
    torch.testing.assert_close(found.root.mT @ found.root, rows.mT @ rows - gain @ inner @ gain.mT)
    torch.testing.assert_close(found.increment, (gain @ inner).sum(-1))
    torch.testing.assert_close((found.coefficients.unsqueeze(1) @ rows).squeeze(1), found.increment)


def test_the_covariance_grows_by_the_tangent_of_the_flow():
    system = Lorenz63(dt=0.01)
    members = torch.tensor([1.5, -1.5, 25.0], dtype=DOUBLE) + 1e-4 * torch.randn(
        3, 200, 3, generator=torch.Generator().manual_seed(4), dtype=DOUBLE
    )
    method = ExtendedKalmanFilter(system, covariance_inflation=2.0)
    after, _ = method.step(method.init(members), None, 0.25, rng=Streams(0, 3, 200))
    moved = members
    for _ in range(25):
        moved = system.step(moved, 0.0, rng=None)
    for e in range(3):
        expected = torch.cov(moved[e].T)
        # Members 1e-4 apart follow the tangent but for their curvature, 1e-4 of it times a growth of order 10.
        assert (after.covariance[e] / 2**0.25 - expected).abs().max() < 1e-2 * expected.abs().max()
        assert (after.mean[e] - moved[e].mean(0)).abs().max() < 1e-6


def test_what_a_square_does_to_a_gaussian():
    """x ~ N(3, 1/4), x^2 / 4: mean (9 + 1/4) / 4, variance (4 * 9 / 4 + 2 / 16) / 16; the EKF has first order only."""
    members = torch.zeros(1, 2, 1, dtype=DOUBLE)
    # One variable: centre weight 1 - 1/3 matches the fourth moment.
    unscented = UnscentedKalmanFilter(Square(), centre_weight=2 / 3, prior="dynamics")
    extended = ExtendedKalmanFilter(Square(), prior="dynamics")
    cases = [(unscented, 9.25 / 4, 9.125 / 16), (extended, 9 / 4, 9 / 16)]
    for method, mean, variance in cases:
        state, _ = method.step(method.init(members), None, 1.0, rng=Streams(0, 1, 2))
        assert float(state.mean) == pytest.approx(mean, rel=1e-12)
        assert float(state.covariance) == pytest.approx(variance, rel=1e-12)


def test_iterations_end_at_the_mode():
    cubic = Function(RING.space, lambda x: x**3 / 10 + x)
    likelihood = Likelihood(cubic, GaussianNoise(std=0.2))
    members = RING.prior((5, 200), rng=Streams(3, 5, 200), dtype=DOUBLE)
    y = 2 * torch.randn(5, 1, 1, 6, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)

    def slope(method):
        state = method.init(members)
        prior = state.covariance
        after, _ = method.step(state, Observation(likelihood, y), 0.0, rng=Streams(0, 5, 200))
        x = after.mean.reshape(5, 1, 1, 6).requires_grad_()
        away = (x.reshape(5, 6) - state.mean).unsqueeze(-1)
        cost = (away * torch.linalg.solve(prior, away)).sum() / 2 - likelihood.log_prob(y, x).sum()
        return torch.autograd.grad(cost, x)[0].abs().max()

    assert slope(ExtendedKalmanFilter(RING, iterations=30)) < 1e-6
    assert slope(ExtendedKalmanFilter(RING)) > 1.0


def test_a_step_too_far_is_halved():
    # From x = 5 the tangent of arctan sends Gauss-Newton to -32, from where it would never return.
    space = Space.scalars("x")
    system = LinearGaussian.scalar(prior_mean=5.0, prior_std=100.0)
    likelihood = Likelihood(Arctan(space), GaussianNoise(std=0.01))
    seen = Observation(likelihood, torch.zeros(1, 1, 1, dtype=DOUBLE))
    method = ExtendedKalmanFilter(system, iterations=40, prior="dynamics")
    state, _ = method.step(method.init(torch.zeros(1, 2, 1, dtype=DOUBLE)), seen, 0.0, rng=Streams(0, 1, 2))
    assert float(state.mean.abs()) < 1e-3


@EVERY
def test_batched_equals_looped(factory):
    system = Lorenz63(dt=0.05, noise_std=0.1)
    likelihood = Likelihood(Arctan(system.space), GaussianNoise(std=0.3))
    members = system.prior((3, 20), rng=Streams(6, 3, 20), dtype=DOUBLE)
    y = torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(6), dtype=DOUBLE)
    method = factory(system)
    both, info = method.step(method.init(members), Observation(likelihood, y), 0.2, rng=Streams(7, 3, 20))
    for e in range(3):
        rng = Streams(7, (e,), 20)
        alone, one = method.step(method.init(members[e : e + 1]), Observation(likelihood, y[e : e + 1]), 0.2, rng=rng)
        torch.testing.assert_close(alone.mean[0], both.mean[e], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(alone.members[0], both.members[e], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(one.log_evidence[0], info.log_evidence[e], atol=1e-9, rtol=1e-9)


def test_members_are_draws_from_the_law():
    n = 20_000
    likelihood = Likelihood(Identity(RING.space), GaussianNoise(std=0.5))
    method = UnscentedKalmanFilter(RING, prior="dynamics")
    state = method.init(torch.zeros(1, n, 1, 6, dtype=DOUBLE))
    seen = Observation(likelihood, torch.ones(1, 6, dtype=DOUBLE))
    state, _ = method.step(state, seen, 1.0, rng=Streams(8, 1, n))
    scale = torch.diagonal(state.covariance[0]).sqrt()
    flat = state.members[0].flatten(1)
    assert ((flat.mean(0) - state.mean[0]).abs() < 5 * scale / n**0.5).all()
    # The standard error of a covariance is at most sqrt(2 / n) of the variances.
    assert ((torch.cov(flat.T) - state.covariance[0]).abs() < 5 * (2 / n) ** 0.5 * torch.outer(scale, scale)).all()


def test_what_they_refuse():
    class Bare:
        space, dt = RING.space, 1.0

    with pytest.raises(CapabilityError, match="moments"):
        ExtendedKalmanFilter(Bare())
    with pytest.raises(CapabilityError, match="prior='members'"):
        UnscentedKalmanFilter(Lorenz63(), prior="dynamics")
    with pytest.raises(ValueError, match="iterations is 0"):
        ExtendedKalmanFilter(RING, iterations=0)
    with pytest.raises(ValueError, match="centre_weight"):
        UnscentedKalmanFilter(RING, centre_weight=-1.0)
    with pytest.raises(ValueError, match="covariance_inflation"):
        UnscentedKalmanFilter(RING, covariance_inflation=0.0)
    method = ExtendedKalmanFilter(RING)
    with pytest.raises(ValueError, match="at least 2"):
        method.init(torch.zeros(1, 1, 1, 6))
    state = method.init(RING.prior((1, 9), rng=Streams(0, 1, 9)))
    other = Observation(Likelihood(Identity(RING.space), Laplace(scale=1.0)), torch.zeros(1, 6))
    with pytest.raises(CapabilityError, match="Gaussian"):
        method.step(state, other, 1.0, rng=Streams(0, 1, 9))
    far = ExtendedKalmanFilter(Square())
    with pytest.raises(Diverged, match="extended Kalman filter diverged at time 40"):
        far.step(far.init(torch.tensor([[[9.0], [9.5]]])), None, 40.0, rng=Streams(0, 1, 2))
