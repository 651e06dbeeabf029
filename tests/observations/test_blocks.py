"""Stacked likelihoods: the density of several instruments is the sum of theirs, whatever their laws."""

import math

import pytest
import torch

from dynamics.random import Streams
from observations.blocks import BlockNoise, SignalBlockNoise, joined, joined_noise
from observations.check import check_operator
from observations.heavy_tails import Laplace, StudentT
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise, SignalNoise
from observations.poisson import Poisson
from observations.sampling import Identity, Mask, Matrix

EVENT = (1, 6)
FULL = GaussianNoise(covariance=torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
X = torch.linspace(0.5, 3.0, 6, dtype=torch.float64).reshape(1, 1, 1, 6).repeat(1, 3, 1, 1)


def instruments(second):
    return [
        Likelihood(Mask(EVENT, [0, 3, 3]), GaussianNoise(std=torch.tensor([0.5, 1.0, 2.0]))),
        Likelihood(Matrix(EVENT, torch.ones(2, 6) * torch.tensor([[1.0], [0.3]])), second),
        Likelihood(Identity(EVENT), GaussianNoise(0.7)),
    ]


@pytest.mark.parametrize("second", [GaussianNoise(0.3), FULL, Laplace(0.4), StudentT(4.0), Poisson(gain=3.0)])
def test_the_density_is_the_sum_of_the_parts_with_gaps_too(second):
    parts = instruments(second)
    whole = joined(parts)
    sizes = [p.operator.obs_size for p in parts]
    y = torch.cat([p.operator(X[0, 0]).flatten() + 0.3 for p in parts])
    y[[1, 4, 7]] = torch.nan
    pieces = [t.reshape(p.operator.obs_shape) for t, p in zip(y.split(sizes), parts, strict=True)]
    expected = sum(p.log_prob(t, X) for p, t in zip(parts, pieces, strict=True))
    torch.testing.assert_close(whole.log_prob(y, X), expected)
    white = torch.cat([p.residual(t, X).flatten(2) for p, t in zip(parts, pieces, strict=True)], -1)
    torch.testing.assert_close(whole.residual(y, X), white)
    check_operator(whole.operator)


def test_gaussian_noises_stay_gaussian():
    sizes = (3, 2, 6)
    assert joined_noise([GaussianNoise(0.7), GaussianNoise(0.7)], (2, 3)).std == 0.7
    diagonal = joined_noise([GaussianNoise(torch.tensor([1.0, 2.0])), GaussianNoise(0.5)], (2, 2))
    assert diagonal.diagonal and diagonal.std.tolist() == [1.0, 2.0, 0.5, 0.5]
    full = joined_noise([p.noise for p in instruments(FULL)], sizes).covariance
    assert torch.equal(full[3:5, 3:5], FULL.covariance) and full[:3, 3:].abs().max() == 0
    torch.testing.assert_close(full.diagonal()[5:], torch.full((6,), 0.49, dtype=torch.float64))


def test_only_a_block_that_depends_on_the_signal_makes_one_that_does():
    assert type(joined_noise([GaussianNoise(1.0), Laplace(1.0)], (1, 1))) is BlockNoise
    mixed = joined_noise([GaussianNoise(1.0), Poisson(gain=2.0)], (1, 1))
    assert type(mixed) is SignalBlockNoise and isinstance(mixed, SignalNoise)
    assert not isinstance(joined_noise([GaussianNoise(1.0), Laplace(1.0)], (1, 1)), SignalNoise)


def test_draws_have_the_variances_of_the_blocks():
    noise = joined_noise([GaussianNoise(0.5), Laplace(1.0)], (1, 1))
    drawn = noise.sample((1, 40000, 2), rng=Streams(1, 1, 40000), dtype=torch.float64)
    variance = drawn.var(1)[0]
    expected = noise.variance(2, dtype=torch.float64)
    torch.testing.assert_close(expected, torch.tensor([0.25, 2.0], dtype=torch.float64))
    # Standard error of a variance: sqrt((kurtosis - 1) / n) of it, kurtosis 3 and 6; 4 of them.
    for found, wanted, kurtosis in zip(variance, expected, (3, 6), strict=True):
        assert float(found / wanted) == pytest.approx(1, abs=4 * math.sqrt((kurtosis - 1) / 40000))
    with pytest.raises(ValueError, match="has 2 values"):
        noise.variance(3)


def test_a_single_instrument_is_left_alone():
    one = instruments(FULL)[1]
    assert joined([one]) is one
