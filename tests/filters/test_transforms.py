"""The ensemble algebra against dense linear algebra, with more and with fewer values than members."""

import math

import pytest
import torch

from assimilate.filters.inflation import inflate, mean_preserving_rotation, rotate
from assimilate.filters.transforms import (
    innovation_log_likelihood,
    kalman_increments,
    square_root_analysis,
    transform_weights,
)
from dynamics.random import Streams

N, STATE = 6, 9
SIZES = (1, 3, 5, 6, 8, 30)


def system(m, seed=0):
    g = torch.Generator().manual_seed(seed)
    anomalies = torch.randn(2, N, STATE, generator=g, dtype=torch.float64)
    anomalies = anomalies - anomalies.mean(1, keepdim=True)
    operator = torch.randn(m, STATE, generator=g, dtype=torch.float64)
    return anomalies, anomalies @ operator.T, operator, torch.randn(2, m, generator=g, dtype=torch.float64)


def gain(anomalies, operator):
    p = anomalies.mT @ anomalies / (N - 1)
    eye = torch.eye(len(operator), dtype=torch.float64)
    return p, p @ operator.T @ torch.linalg.inv(operator @ p @ operator.T + eye)


@pytest.mark.parametrize("m", SIZES)
def test_increments_are_the_kalman_gain_of_the_sample_covariance(m):
    anomalies, spread, operator, departure = system(m)
    _, k = gain(anomalies, operator)
    departures = torch.stack([departure, 2 * departure], 1)
    torch.testing.assert_close(kalman_increments(anomalies, spread, departures), departures @ k.mT)


@pytest.mark.parametrize("m", SIZES)
def test_square_root_is_exact_in_ensemble_space(m):
    anomalies, spread, operator, departure = system(m)
    p, k = gain(anomalies, operator)
    increment, after = square_root_analysis(anomalies, spread, departure)
    torch.testing.assert_close(increment.squeeze(1), (k @ departure.unsqueeze(-1)).squeeze(-1))
    expected = p - k @ operator @ p
    torch.testing.assert_close(after.mT @ after / (N - 1), expected, atol=1e-12, rtol=1e-9)
    assert after.mean(1).abs().max() < 1e-12


def test_root_is_symmetric_and_keeps_ones():
    _, spread, _, departure = system(30)
    _, root = transform_weights(spread @ spread.mT, (spread @ departure.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(root, root.mT)
    torch.testing.assert_close(root.sum(-1), torch.ones(2, N, dtype=torch.float64))


@pytest.mark.parametrize("m", SIZES)
def test_evidence_is_a_gaussian_density(m):
    anomalies, spread, operator, departure = system(m)
    p, _ = gain(anomalies, operator)
    normalizer = torch.full((2,), -0.5 * m * math.log(2 * math.pi), dtype=torch.float64)
    covariance = operator @ p @ operator.T + torch.eye(m, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(2, m, dtype=torch.float64), covariance)
    torch.testing.assert_close(innovation_log_likelihood(spread, departure, normalizer), law.log_prob(departure))


def test_rotation_keeps_mean_and_covariance():
    members = torch.randn(2, N, 1, STATE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = rotate(members, torch.tensor([True, False]), rng=Streams(0, 2, N))
    assert torch.equal(turned[1], members[1]) or (turned[1] - members[1]).abs().max() < 1e-14
    assert (turned[0] - members[0]).abs().max() > 0.1
    torch.testing.assert_close(turned.mean(1), members.mean(1))
    for e in range(2):
        torch.testing.assert_close(torch.cov(turned[e].flatten(1).T), torch.cov(members[e].flatten(1).T))


def test_rotations_are_uniform():
    # For a Haar rotation across the ones, E[Q_ij] = 1 / N and E[Q_ii^2] = 1/N^2 + (1 - 1/N)^2 / (N - 1).
    n, draws = 4, 20_000
    q = mean_preserving_rotation(
        torch.randn(draws, n, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    )
    torch.testing.assert_close(q.sum(-1), torch.ones(draws, n, dtype=torch.float64))
    assert (q.mean(0) - 1 / n).abs().max() < 5 * 0.45 / draws**0.5
    square = torch.diagonal(q, dim1=-2, dim2=-1).square()
    expected = 1 / n**2 + (1 - 1 / n) ** 2 / (n - 1)
    assert (square.mean(0) - expected).abs().max() < 5 * float(square.std()) / draws**0.5


def test_inflation_and_relaxation():
    g = torch.Generator().manual_seed(3)
    before = torch.randn(1, 8, 1, 4, generator=g, dtype=torch.float64)
    after = 0.3 * torch.randn(1, 8, 1, 4, generator=g, dtype=torch.float64)
    where = torch.tensor([True, True, False, True]).reshape(1, 1, 4)
    out = inflate(after, before, where, inflation=1.1, relaxation=0.25)
    torch.testing.assert_close(out.mean(1), after.mean(1))
    expected = 1.1 * (0.75 * after.std(1) + 0.25 * before.std(1))
    torch.testing.assert_close(out.std(1)[..., [0, 1, 3]], expected[..., [0, 1, 3]])
    assert torch.allclose(out[..., 2], after[..., 2])
