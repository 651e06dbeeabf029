import pytest
import torch

from assimilate.baselines.base import Baseline
from assimilate.baselines.climatology import Climatology, ClimatologyFilter
from assimilate.baselines.persistence import Persistence, PersistenceFilter
from assimilate.filters.check import check_filter
from dynamics import LinearGaussian, Streams
from observations import GaussianNoise, Likelihood, Mask, Observation

RING = LinearGaussian.ring(5)


def test_persistence_is_the_last_earlier_state():
    states = torch.arange(30.0).reshape(2, 3, 1, 5)
    method = Persistence(RING.space, states, (1.0, 2.0, 4.0))
    assert isinstance(method, Baseline)
    assert torch.equal(method.estimate(None, 2.0).mean, states[:, 0])
    assert torch.equal(method.estimate(None, 3.0).mean, states[:, 1])
    assert torch.equal(method.estimate(None, 9.0).mean, states[:, 2])
    assert torch.isnan(method.estimate(None, 1.0).mean).all()
    assert method.estimate(None, 2.0).std is None
    with pytest.raises(ValueError, match="increase"):
        Persistence(RING.space, states, (1.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="expected"):
        Persistence(RING.space, states, (1.0, 2.0))


def test_climatology_is_mean_and_standard_deviation():
    states = torch.randn(40, 3, 1, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    method = Climatology.fit(states, RING.space)
    assert isinstance(method, Baseline)
    flat = states.reshape(120, 1, 5)
    torch.testing.assert_close(method.mean, flat.mean(0))
    torch.testing.assert_close(method.std, flat.std(0))
    pooled = Climatology.fit(states, RING.space, pooled=True)
    torch.testing.assert_close(pooled.mean, flat.mean().expand(1, 5))
    torch.testing.assert_close(pooled.std, flat.flatten().std().expand(1, 5))
    likelihood = Likelihood(Mask(RING.space, torch.arange(2)), GaussianNoise(std=1.0))
    estimate = method.estimate(Observation(likelihood, torch.zeros(4, 1, 2)), 3.0)
    assert estimate.mean.shape == estimate.std.shape == (4, 1, 5)


def test_filters_keep_the_contract():
    check_filter(PersistenceFilter)
    check_filter(ClimatologyFilter)


def test_persistence_filter_keeps_its_members_and_climatology_forgets_them():
    rng = Streams(0, 2, 4000)
    members = 3 + RING.prior((2, 4000), rng=rng)
    kept = PersistenceFilter(RING)
    state, _ = kept.step(kept.init(members), None, 5.0, rng=rng.at(1))
    assert torch.equal(state.members, members) and state.time == 5.0
    drawn = ClimatologyFilter(RING)
    state, _ = drawn.step(drawn.init(members), None, 5.0, rng=rng.at(1))
    std = RING.prior_moments()[1].diagonal().sqrt()
    assert (state.members.mean(1).abs() < 5 * std / 4000**0.5).all()
    assert ((state.members.std(1) / std - 1).abs() < 5 / 8000**0.5).all()
