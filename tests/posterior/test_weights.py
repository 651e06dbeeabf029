import math

import pytest
import torch

from assimilate.posterior.weights import (
    WeightCollapse,
    counts_to_ancestors,
    effective_sample_size,
    log_normalize,
    resample,
    resampling_counts,
    weighted_mean,
    weighted_variance,
)
from dynamics.random import Streams, uniform

SCHEMES = ("systematic", "stratified", "residual")


def weights(experiments=3, members=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return log_normalize(2 * torch.randn(experiments, members, generator=generator, dtype=torch.float64))[0]


def test_normalisation_and_total():
    raw = torch.log(torch.tensor([[1.0, 3.0], [0.0, 5.0]]))
    normalised, total = log_normalize(raw)
    torch.testing.assert_close(normalised.exp(), torch.tensor([[0.25, 0.75], [0.0, 1.0]]))
    torch.testing.assert_close(total, torch.log(torch.tensor([4.0, 5.0])))


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
def test_collapse_names_the_experiment(bad):
    raw = torch.zeros(3, 4)
    raw[1] = bad
    with pytest.raises(WeightCollapse, match=r"experiment\(s\) \[1\]"):
        log_normalize(raw)


def test_effective_sample_size_of_known_weights():
    raw = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]).log()
    torch.testing.assert_close(effective_sample_size(raw), torch.tensor([4.0, 1.0, 2.0]))
    # Unnormalised, and far below the range of float32 when exponentiated.
    torch.testing.assert_close(effective_sample_size(raw - 500.0), torch.tensor([4.0, 1.0, 2.0]))


def test_weighted_moments():
    members = torch.randn(2, 5, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    equal = torch.full((2, 5), -math.log(5), dtype=torch.float64)
    torch.testing.assert_close(weighted_mean(members, equal), members.mean(1))
    torch.testing.assert_close(weighted_variance(members, equal), members.var(1))
    double = torch.tensor([[2, 1, 1, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.float64)
    log_weights = (double / double.sum(1, keepdim=True)).log()
    torch.testing.assert_close(weighted_mean(members, log_weights)[1], members[1, [2, 4]].mean(0))
    torch.testing.assert_close(weighted_variance(members, log_weights)[1], members[1, [2, 4]].var(0))


@pytest.mark.parametrize("share", [0.5, 1e-3, 1e-6, 1e-9, 1e-12])
def test_variance_of_two_members_does_not_depend_on_their_weights(share):
    # W1 W2 d^2 / (1 - W1^2 - W2^2) = d^2 / 2 for any weights that sum to 1; 1 - 1/ESS has 1e-16 / share left of it.
    log_weights = torch.tensor([[math.log1p(-share), math.log(share)]], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        members = torch.tensor([[[300.0], [302.0]]], dtype=dtype)
        found = float(weighted_variance(members, log_weights.to(dtype)))
        assert found == pytest.approx(2.0, rel=1e-5 + 4e-16 / share)
    assert float(weighted_variance(members, torch.tensor([[0.0, -math.inf]], dtype=dtype))) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_unbiased(scheme):
    log_weights = weights()
    draws = 2000
    generator = torch.Generator().manual_seed(5)
    counts = torch.stack([resampling_counts(log_weights, scheme, rng=generator) for _ in range(draws)]).double()
    assert (counts.sum(-1) == log_weights.shape[1]).all()
    expected = log_weights.shape[1] * log_weights.exp()
    # No scheme varies more than independent draws: variance N W (1 - W). Five standard errors, 120 comparisons.
    error = torch.sqrt(expected * (1 - log_weights.exp()) / draws)
    assert ((counts.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


def test_how_far_counts_may_be_from_their_mean():
    log_weights = weights(members=60)
    expected = 60 * log_weights.exp()
    generator = torch.Generator().manual_seed(6)
    for _ in range(50):
        systematic, stratified, residual = (resampling_counts(log_weights, s, rng=generator) for s in SCHEMES)
        assert ((systematic - expected).abs() < 1).all()
        assert ((stratified - expected).abs() < 2).all()
        assert (residual >= torch.floor(expected)).all()


def test_stratified_points_lie_one_in_each_stratum():
    # With weights 1/4, 3/4 and N = 2, the first member owns half of the first stratum: 0 or 1 child, half and half.
    log_weights = torch.tensor([[0.25, 0.75]]).log().expand(20_000, 2)
    counts = resampling_counts(log_weights, "stratified", rng=torch.Generator().manual_seed(0)).double()
    assert set(counts[:, 0].tolist()) == {0.0, 1.0}
    assert abs(counts[:, 0].mean() - 0.5) < 5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_members_of_weight_zero_have_no_children(scheme):
    raw = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]]).log()
    for seed in range(200):
        counts = resampling_counts(raw, scheme, rng=torch.Generator().manual_seed(seed))
        assert (counts[0, [0, 3, 5]] == 0).all() and counts.sum() == 6


def test_a_million_float32_weights():
    generator = torch.Generator().manual_seed(3)
    n = 1_000_000
    log_weights = log_normalize(torch.randn(1, n, generator=generator))[0]
    counts = resampling_counts(log_weights, rng=generator)
    assert counts.sum() == n
    # The share of the first half is right to one child: float32 sums would be off by hundreds.
    share = n * torch.softmax(log_weights.double(), -1)[0, : n // 2].sum()
    assert abs(counts[0, : n // 2].sum() - share) <= 1.0


def test_counts_to_ancestors():
    ancestors = counts_to_ancestors(torch.tensor([[2, 0, 1], [0, 3, 0]]))
    assert ancestors.tolist() == [[0, 0, 2], [1, 1, 1]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ancestors_are_those_of_the_counts(scheme):
    log_weights = weights(4, 70).clone()
    log_weights[2, :50] = -math.inf
    members = torch.arange(280.0).reshape(4, 70, 1)
    result = resample(members, log_weights, scheme, 1.0, rng=Streams(3, 4, 70))
    counts = resampling_counts(log_weights, scheme, rng=Streams(3, 4, 70))
    assert result.ancestors.tolist() == [[i for i in range(70) for _ in range(row[i])] for row in counts.tolist()]
    # As many numbers are drawn whether or not anything is resampled.
    drawn, idle = Streams(3, 4, 70), Streams(3, 4, 70)
    resample(members, log_weights, scheme, 1.0, rng=drawn)
    resample(members, log_weights, scheme, 0.0, rng=idle)
    assert torch.equal(uniform(drawn, (4,)), uniform(idle, (4,)))


def test_only_experiments_below_the_threshold_are_resampled():
    log_weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.97, 0.01, 0.01, 0.01]]).log()
    members = torch.arange(8.0).reshape(2, 4, 1)
    result = resample(members, log_weights, "systematic", 0.5, rng=Streams(0, 2, 4))
    assert result.triggered.tolist() == [False, True]
    assert torch.equal(result.members[0], members[0]) and torch.equal(result.log_weights[0], log_weights[0])
    assert result.ancestors[0].tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(result.log_weights[1], torch.full((4,), -math.log(4)))
    assert torch.equal(result.members[1, :, 0], members[1, result.ancestors[1], 0])
    always = resample(members, log_weights, "systematic", 1.0, rng=Streams(0, 2, 4))
    never = resample(members, log_weights, "systematic", 0.0, rng=Streams(0, 2, 4))
    assert always.triggered.all() and not never.triggered.any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experiments_do_not_depend_on_each_other(scheme):
    log_weights = weights(3, 30)
    members = torch.randn(3, 30, 1, 2, generator=torch.Generator().manual_seed(2))
    together = resample(members, log_weights, scheme, 0.9, rng=Streams(4, 3, 30))
    alone = resample(members[2:], log_weights[2:], scheme, 0.9, rng=Streams(4, (2,), 30))
    assert torch.equal(together.members[2], alone.members[0])


def test_settings_are_checked():
    with pytest.raises(ValueError, match="systematic, stratified, residual"):
        resampling_counts(weights(), "multinomial", rng=torch.Generator())
    with pytest.raises(ValueError, match="between 0 and 1"):
        resample(torch.zeros(1, 2, 1), torch.zeros(1, 2), threshold=1.5, rng=torch.Generator())
