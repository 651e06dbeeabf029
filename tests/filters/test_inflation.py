"""The settings of the spread: each formula, that the mean stays, and that unobserved places are left alone."""

import math

import pytest
import torch

from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.finite_size import EnKFN
from assimilate.filters.inflation import add_noise, inflate
from assimilate.filters.local import LETKF, LocalEnKF
from assimilate.filters.serial import LocalEAKF
from dynamics import LinearGaussian, Streams
from dynamics.covariance import FullCovariance, ScaledIdentity
from observations import GaussianNoise, Likelihood, Mask, Observation

RING = LinearGaussian.ring(8)
N = 10
ALL = torch.ones(1, dtype=torch.bool).reshape(1, 1, 1)


def pair(seed=0, scale=0.3):
    g = torch.Generator().manual_seed(seed)
    before = torch.randn(2, N, 1, 8, generator=g, dtype=torch.float64)
    return before, scale * torch.randn(2, N, 1, 8, generator=g, dtype=torch.float64)


def anomalies(x):
    return x - x.mean(1, keepdim=True)


def likelihood(cells=(0, 1)):
    return Likelihood(Mask(RING.space, torch.tensor(cells)), GaussianNoise(std=0.5))


def analyse(method, members, observation, seed=0):
    return method.step(method.init(members), observation, 0.0, rng=Streams(seed, *members.shape[:2]))


def test_relaxation_to_the_prior_perturbations():
    before, after = pair()
    out = inflate(after, before, ALL, perturbation_relaxation=0.3)
    torch.testing.assert_close(out.mean(1), after.mean(1))
    torch.testing.assert_close(anomalies(out), 0.7 * anomalies(after) + 0.3 * anomalies(before))
    torch.testing.assert_close(anomalies(inflate(after, before, ALL, perturbation_relaxation=1.0)), anomalies(before))


def test_relaxations_and_inflation_come_in_their_order():
    before, after = pair()
    settings = {"inflation": 1.2, "relaxation": 0.4, "perturbation_relaxation": 0.3}
    out = inflate(after, before, ALL, **settings)
    mixed = 0.7 * anomalies(after) + 0.3 * anomalies(before)
    expected = 1.2 * (0.6 * mixed.std(1) + 0.4 * before.std(1))
    torch.testing.assert_close(out.std(1), expected)
    torch.testing.assert_close(out.mean(1), after.mean(1))


@pytest.mark.parametrize("relaxation", ["relaxation", "perturbation_relaxation"])
def test_full_relaxation_keeps_the_prior_spread(relaxation):
    members, _ = pair()
    observation = Observation(likelihood(), torch.zeros(2, dtype=torch.float64))
    plain, _ = analyse(ETKF(RING), members, observation)
    kept, _ = analyse(ETKF(RING, **{relaxation: 1.0}), members, observation)
    torch.testing.assert_close(kept.members.std(1), members.std(1))
    torch.testing.assert_close(kept.members.mean(1), plain.members.mean(1))
    assert (plain.members.std(1) < 0.99 * members.std(1)).any()


@pytest.mark.parametrize("factory", [ETKF, EnKF, EnKFN, lambda d, **s: LETKF(d, math.inf, **s)])
def test_prior_inflation_is_the_analysis_of_a_wider_ensemble(factory):
    members, _ = pair()
    observation = Observation(likelihood(), torch.zeros(2, dtype=torch.float64))
    wide = members.mean(1, keepdim=True) + 1.3 * anomalies(members)
    one, info = analyse(factory(RING, prior_inflation=1.3), members, observation)
    other, other_info = analyse(factory(RING), wide, observation)
    torch.testing.assert_close(one.members, other.members)
    torch.testing.assert_close(info.background, wide)
    torch.testing.assert_close(info.log_evidence, other_info.log_evidence, equal_nan=True)


def test_multiplicative_inflation_of_prior_and_posterior_in_closed_form():
    # One value seen with variance R: prior f^2 P, posterior g^2 (1 / (f^2 P) + 1 / R)^-1.
    members, _ = pair()
    observation = Observation(likelihood((3,)), torch.zeros(1, dtype=torch.float64))
    state, _ = analyse(ETKF(RING, prior_inflation=1.3, inflation=1.1), members, observation)
    p = 1.3**2 * members[:, :, 0, 3].var(1)
    torch.testing.assert_close(state.members[:, :, 0, 3].var(1), 1.1**2 / (1 / p + 1 / 0.25))


def test_additive_inflation_adds_the_covariance_and_keeps_the_mean():
    matrix = 0.2 * torch.eye(8, dtype=torch.float64) + 0.1
    experiments, n = 2000, 4
    members = torch.zeros(experiments, n, 1, 8, dtype=torch.float64)
    for additive, expected in (
        (0.5, 0.25 * torch.eye(8, dtype=torch.float64)),
        (FullCovariance(matrix, (1, 8)), matrix),
    ):
        out = add_noise(members, ALL, additive, rng=Streams(2, experiments, n)).flatten(2)
        assert out.mean(1).abs().max() < 1e-12
        found = (out.mT @ out).mean(0) / (n - 1)
        # n - 1 free draws in each experiment; standard error of an entry at most sqrt(2) times the largest variance
        # over their root; five of them, less than the factor n / (n - 1) would make.
        limit = 5 * math.sqrt(2 / (experiments * (n - 1))) * float(expected.max())
        assert (found - expected).abs().max() < limit < float(expected.max()) / (n - 1)


@pytest.mark.parametrize(
    "factory",
    [
        lambda d, **s: LETKF(d, 1.0, **s),
        lambda d, **s: LocalEnKF(d, 1.0, **s),
        lambda d, **s: LocalEAKF(d, 1.0, **s),
    ],
    ids=["LETKF", "local EnKF", "local EAKF"],
)
def test_cells_out_of_reach_are_left_alone(factory):
    """Radius 1 reaches the cells less than 2 away from cells 0 and 1: 7, 0, 1, 2."""
    members, _ = pair()
    method = factory(
        RING, prior_inflation=1.2, inflation=1.1, relaxation=0.3, perturbation_relaxation=0.2, additive=0.1
    )
    state, info = analyse(method, members, Observation(likelihood(), torch.zeros(2, dtype=torch.float64)))
    near = torch.tensor([True, True, True, False, False, False, False, True])
    assert torch.equal((state.members != members).any(0).any(0).squeeze(0), near)
    assert torch.equal((info.background != members).any(0).any(0).squeeze(0), near)
    assert torch.isnan(info.log_evidence).all()


def test_an_experiment_without_observations_is_the_forecast():
    members, _ = pair()
    y = torch.zeros(2, 1, 2, dtype=torch.float64)
    y[1] = math.nan
    settings = {"prior_inflation": 1.2, "inflation": 1.1, "relaxation": 0.3, "additive": 0.1, "rotate": True}
    for method in (ETKF(RING, **settings), EnKFN(RING, **settings), LETKF(RING, 1.0, **settings)):
        state, info = analyse(method, members, Observation(likelihood(), y))
        assert torch.equal(state.members[1], members[1]) and torch.equal(info.background[1], members[1])
        assert not torch.equal(state.members[0], members[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"inflation": 0.0}, "inflation is 0.0"),
        ({"prior_inflation": -1.0}, "prior_inflation is -1.0"),
        ({"inflation": math.nan}, "inflation is nan"),
        ({"relaxation": 1.5}, "relaxation is 1.5"),
        ({"perturbation_relaxation": -0.1}, "perturbation_relaxation is -0.1"),
        ({"additive": -0.1}, "additive is -0.1"),
        ({"additive": "much"}, "additive is 'much'"),
        ({"additive": ScaledIdentity(torch.tensor(1.0), (3,))}, r"events \(3,\); the state is \(1, 8\)"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        ETKF(RING, **settings)
