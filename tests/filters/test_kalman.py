"""The Kalman filter against the joint Gaussian law of states and observations, written out as one big matrix."""

import math

import pytest
import torch

from assimilate.filters.kalman import KalmanFilter
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import Arctan, GaussianNoise, Likelihood, Mask, Matrix, Observation

STEPS = 4


def chain():
    g = torch.Generator().manual_seed(0)
    d = 3
    matrix = 0.9 * torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    root = torch.randn(d, d, generator=g, dtype=torch.float64)
    # One component without noise: Q may be singular.
    noise = torch.diag(torch.tensor([0.3, 0.0, 0.1], dtype=torch.float64))
    return LinearGaussian(matrix, noise, torch.tensor([1.0, -2.0, 0.5]), root @ root.T)


def likelihoods(dynamics, kind):
    g = torch.Generator().manual_seed(1)
    operator = Matrix(dynamics.space, torch.randn(2, 3, generator=g, dtype=torch.float64))
    full = torch.tensor([[0.5, 0.3], [0.3, 0.4]])
    noise = {"scalar": GaussianNoise(std=0.7), "each": GaussianNoise(std=torch.tensor([0.3, 0.9]))}.get(
        kind, GaussianNoise(covariance=full)
    )
    return Likelihood(operator, noise)


def joint(dynamics, likelihood, steps):
    """Mean and covariance of (x_0 .. x_K, y_1 .. y_K)."""
    a, d = dynamics.matrix, dynamics.prior_mean.numel()
    h = likelihood.operator.matrix()
    m = len(h)
    r = likelihood.noise.covariance_matrix(m, dtype=torch.float64)
    means, lift = [dynamics.prior_mean], [torch.eye(d, dtype=torch.float64)]
    for _ in range(steps):
        means.append(a @ means[-1])
        lift.append(a @ lift[-1])
    size = (steps + 1) * d
    # x_k = A^k x_0 + sum_j A^(k-j) e_j
    root = torch.zeros(size, size, dtype=torch.float64)
    source = torch.block_diag(dynamics.prior_covariance, *[dynamics.noise_covariance] * steps)
    for k in range(steps + 1):
        for j in range(k + 1):
            root[k * d : (k + 1) * d, j * d : (j + 1) * d] = lift[k - j]
    states = root @ source @ root.T
    seen = torch.block_diag(torch.zeros(0, d, dtype=torch.float64), *[h] * steps)
    mean = torch.cat(means)
    covariance = torch.cat(
        [
            torch.cat([states, states @ seen.T], 1),
            torch.cat([seen @ states, seen @ states @ seen.T + torch.block_diag(*[r] * steps)], 1),
        ]
    )
    return torch.cat([mean, seen @ mean]), covariance, size


def conditional(mean, covariance, size, values):
    """Law of the states given the finite ones of the values, and the log density of these."""
    kept = size + (~torch.isnan(values)).nonzero().squeeze(-1)
    y = values[~torch.isnan(values)]
    block = covariance[kept][:, kept]
    gain = covariance[:size][:, kept] @ torch.linalg.inv(block)
    density = torch.distributions.MultivariateNormal(mean[kept], block).log_prob(y)
    return mean[:size] + gain @ (y - mean[kept]), covariance[:size, :size] - gain @ covariance[kept][:, :size], density


@pytest.mark.parametrize("kind", ["scalar", "each", "full"])
def test_exact_mean_covariance_and_evidence(kind):
    dynamics = chain()
    likelihood = likelihoods(dynamics, kind)
    g = torch.Generator().manual_seed(2)
    y = 2 * torch.randn(STEPS, 2, 1, 2, generator=g, dtype=torch.float64)
    # Experiment 1 misses a value and a whole time.
    y[1, 1, 0, 0] = math.nan
    y[2, 1] = math.nan
    method = KalmanFilter(dynamics)
    rng = Streams(0, 2, 3)
    state = method.init(dynamics.prior((2, 3), rng=rng, dtype=torch.float64))
    evidence = 0.0
    for k in range(STEPS):
        state, info = method.step(state, Observation(likelihood, y[k]), float(k + 1), rng=rng.at(k))
        evidence = evidence + info.log_evidence
    law = joint(dynamics, likelihood, STEPS)
    for e in range(2):
        mean, covariance, density = conditional(*law, y[:, e, 0].flatten())
        torch.testing.assert_close(state.mean[e], mean[-3:])
        torch.testing.assert_close(state.covariance[e], covariance[-3:, -3:], atol=1e-12, rtol=1e-8)
        torch.testing.assert_close(evidence[e], density)


def test_several_steps_between_observations():
    dynamics = chain()
    method = KalmanFilter(dynamics)
    state = method.init(torch.zeros(1, 2, 3))
    state, info = method.step(state, None, 3.0, rng=Streams(0, 1, 2))
    mean, covariance = dynamics.marginal_moments(3)
    torch.testing.assert_close(state.mean[0], mean.flatten())
    torch.testing.assert_close(state.covariance[0], covariance.dense())
    assert info.log_evidence == 0


def test_members_are_draws_of_the_law():
    dynamics = chain()
    n = 20_000
    method = KalmanFilter(dynamics)
    state = method.init(dynamics.prior((1, n), rng=Streams(0, 1, n), dtype=torch.float64))
    seen = Observation(likelihoods(dynamics, "each"), torch.zeros(2, dtype=torch.float64))
    state, info = method.step(state, seen, 1.0, rng=Streams(1, 1, n))
    members, log_weights = method.ensemble(state)
    scale = torch.diagonal(state.covariance[0]).sqrt()
    assert ((members[0].mean(0) - state.mean[0]).abs() < 5 * scale / n**0.5).all()
    # The standard error of a covariance is at most sqrt(2 / n) of the variances.
    error = (torch.cov(members[0].T) - state.covariance[0]).abs() / (scale[:, None] * scale)
    assert (error < 5 * (2 / n) ** 0.5).all()
    torch.testing.assert_close(log_weights, torch.full((1, n), -math.log(n), dtype=torch.float64))
    assert info.background.shape == members.shape


def test_start_from_members():
    dynamics = chain()
    members = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    state = KalmanFilter(dynamics, prior="members").init(members)
    torch.testing.assert_close(state.mean, members.mean(1))
    torch.testing.assert_close(state.covariance[1], torch.cov(members[1].T))


def test_what_it_cannot_do():
    with pytest.raises(CapabilityError, match="not affine"):
        KalmanFilter(Lorenz63(noise_std=0.1), prior="members")
    with pytest.raises(ValueError, match="dynamics, members"):
        KalmanFilter(chain(), prior="none")
    ring = LinearGaussian.ring(4)
    method = KalmanFilter(ring)
    state = method.init(torch.zeros(1, 2, 1, 4))
    curved = Likelihood(Arctan(ring.space), GaussianNoise(std=1.0))
    with pytest.raises(CapabilityError, match="linear operator"):
        method.step(state, Observation(curved, torch.zeros(1, 4)), 1.0, rng=Streams(0, 1, 2))
    fine = Likelihood(Mask(ring.space, torch.arange(2)), GaussianNoise(std=1.0))
    with pytest.raises(ValueError, match="expected"):
        method.step(state, Observation(fine, torch.zeros(3, 1, 2)), 1.0, rng=Streams(0, 1, 2))
