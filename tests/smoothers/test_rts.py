"""The RTS smoother against the joint Gaussian law of the whole trajectory, written out as one big matrix."""

import math

import pytest
import torch

from assimilate.filters.kalman import KalmanFilter
from assimilate.smoothers.base import Smoother
from assimilate.smoothers.rts import RTS
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import GaussianNoise, Likelihood, Matrix, Observation

TIMES = (0.0, 1.0, 3.0, 4.0)
D = 2


def chain():
    matrix = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    # The second component has no noise of its own.
    noise = torch.diag(torch.tensor([0.4, 0.0], dtype=torch.float64))
    return LinearGaussian(matrix, noise, torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.4], [0.4, 0.8]]))


def window():
    """Two experiments; nothing at the second time, one value missing at the last."""
    likelihood = Likelihood(Matrix(chain().space, torch.tensor([[1.0, 0.5], [0.0, 1.0]])), GaussianNoise(std=0.6))
    y = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[2, 1, 0, 1] = math.nan
    first, third, last = (Observation(likelihood, values) for values in y)
    return [first, None, third, last]


def joint(known=None):
    """Mean and covariance of the states at TIMES before anything is observed."""
    system, last = chain(), int(TIMES[-1])
    a = system.matrix
    mean = [system.prior_mean if known is None else known]
    covariance = {(0, 0): system.prior_covariance if known is None else torch.zeros(D, D, dtype=torch.float64)}
    for k in range(last):
        mean.append(a @ mean[-1])
        for j in range(k + 1):
            covariance[j, k + 1] = covariance[j, k] @ a.T
        covariance[k + 1, k + 1] = a @ covariance[k, k] @ a.T + system.noise_covariance
    kept = [int(t) for t in TIMES]
    rows = [torch.cat([covariance[j, k] if j <= k else covariance[k, j].T for k in kept], 1) for j in kept]
    return torch.cat([mean[k] for k in kept]), torch.cat(rows)


def posterior(experiment, known=None):
    mean, covariance = joint(known)
    rows, values = [], []
    for index, seen in enumerate(window()):
        if seen is None:
            continue
        y = seen.y[experiment, 0]
        for row, value in zip(seen.likelihood.operator.matrix(), y, strict=True):
            if not torch.isnan(value):
                full = torch.zeros(len(mean), dtype=torch.float64)
                full[index * D : (index + 1) * D] = row
                rows.append(full)
                values.append(value)
    h, y = torch.stack(rows), torch.stack(values)
    block = h @ covariance @ h.T + 0.36 * torch.eye(len(y), dtype=torch.float64)
    gain = covariance @ h.T @ torch.linalg.inv(block)
    density = torch.distributions.MultivariateNormal(h @ mean, block).log_prob(y)
    return mean + gain @ (y - h @ mean), covariance - gain @ h @ covariance, density


@pytest.mark.parametrize("known", [None, torch.tensor([0.3, -0.7], dtype=torch.float64)])
def test_exact_marginals_and_evidence(known):
    initial = None if known is None else known.expand(2, D)
    found = RTS(chain()).moments(window(), TIMES, experiments=2, initial=initial)
    for e in range(2):
        mean, covariance, density = posterior(e, known)
        torch.testing.assert_close(found.mean[e].flatten(), mean)
        for k in range(4):
            block = covariance[k * D : (k + 1) * D, k * D : (k + 1) * D]
            torch.testing.assert_close(found.covariance[e, k], block, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(found.log_evidence[e], density)


@pytest.mark.parametrize("known", [None, torch.tensor([0.3, -0.7], dtype=torch.float64)])
def test_draws_have_the_joint_law_of_the_trajectory(known):
    n = 20_000
    method = RTS(chain())
    assert isinstance(method, Smoother)
    initial = None if known is None else known.expand(2, D)
    paths, info = method.solve(window(), TIMES, n, rng=Streams(0, 2, n), initial=initial, dtype=torch.float64)
    assert paths.shape == (2, n, 4, D)
    for e in range(2):
        mean, covariance, density = posterior(e, known)
        flat = paths[e].flatten(1)
        scale = torch.diagonal(covariance).clamp_min(0).sqrt()
        assert ((flat.mean(0) - mean).abs() <= 5 * scale / n**0.5 + 1e-9).all()
        # Standard error of a covariance: at most sqrt(2 / n) of the product of the standard deviations.
        error = (torch.cov(flat.T) - covariance).abs()
        assert (error <= 5 * (2 / n) ** 0.5 * torch.outer(scale, scale) + 1e-9).all()
        torch.testing.assert_close(info.mean[e].flatten(), mean)
        torch.testing.assert_close(info.std[e].flatten(), scale, atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(info.log_evidence[e], density)


def test_the_last_time_is_the_filter():
    system = chain()
    seen = window()
    method = KalmanFilter(system)
    rng = Streams(0, 2, 2)
    state = method.init(torch.zeros(2, 2, D, dtype=torch.float64))
    for observation, time in zip(seen, TIMES, strict=True):
        state, _ = method.step(state, observation, time, rng=rng)
    found = RTS(system).moments(seen, TIMES, experiments=2)
    torch.testing.assert_close(found.mean[:, -1], state.mean)
    torch.testing.assert_close(found.covariance[:, -1], state.covariance)


def test_what_it_refuses():
    with pytest.raises(CapabilityError, match="affine"):
        RTS(Lorenz63(noise_std=0.1))
    with pytest.raises(ValueError, match="one \\(or None\\) for each"):
        RTS(chain()).moments(window(), TIMES[:3])
    with pytest.raises(ValueError, match="increase"):
        RTS(chain()).moments(window(), (0.0, 2.0, 1.0, 3.0))
