"""Every filter on a linear Gaussian system: the Kalman filter's answer, limits, missing values, batches, seeds."""

import math

import pytest
import torch

from assimilate.filters.base import Diverged
from assimilate.filters.check import check_filter
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.local import LETKF
from assimilate.filters.particle import BootstrapFilter, GuidedParticleFilter
from assimilate.posterior.weights import weighted_mean, weighted_variance
from dynamics import ContractError, LinearGaussian, Streams
from observations import GaussianNoise, Likelihood, Mask, Matrix, Observation

CELLS, STEPS = 6, 6
FACTORIES = {
    "KalmanFilter": KalmanFilter,
    "EnKF": EnKF,
    "ETKF": ETKF,
    "ETKF rotated": lambda d: ETKF(d, rotate=True),
    "LETKF": lambda d: LETKF(d, radius=2.0),
    "BootstrapFilter": BootstrapFilter,
    "GuidedParticleFilter": GuidedParticleFilter,
}
EVERY = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())
RING = LinearGaussian.ring(CELLS)


def likelihood(std=0.5, step=2):
    return Likelihood(Mask(RING.space, torch.arange(0, CELLS, step)), GaussianNoise(std=std))


def observations(experiments, model, seed=7):
    rng = Streams(seed, experiments, 1)
    truth, found = RING.prior((experiments, 1), rng=rng), []
    for k in range(STEPS):
        truth = RING.step(truth, float(k), rng=rng.at(2 * k + 1))
        found.append(Observation(model, model.sample(truth, rng=rng.at(2 * k + 2))))
    return found


def run(method, seen, rng, dtype=torch.float32):
    state = method.init(RING.prior(rng.rows, rng=rng.at(0), dtype=dtype))
    evidence, least = 0.0, math.inf
    for k, observation in enumerate(seen):
        state, info = method.step(state, observation, float(k + 1), rng=rng.at(k + 1))
        evidence, least = evidence + info.log_evidence, min(least, float(info.ess.min()))
    return state, evidence, least


@EVERY
def test_contract(factory):
    check_filter(factory, members=400)


# Largest mean error in posterior standard deviations times sqrt(ESS or N), root mean square over 8 x 6 values. One draw
# of N members gives 1; sampling errors of six analyses add to at most sqrt(6) = 2.4, damped by what is observed later.
@pytest.mark.parametrize(
    ("method", "n"),
    [(EnKF(RING), 800), (ETKF(RING), 800), (BootstrapFilter(RING), 4000), (GuidedParticleFilter(RING), 2000)],
    ids=lambda v: getattr(v, "name", v),
)
def test_mean_spread_and_evidence_of_the_kalman_filter(method, n):
    experiments = 8
    seen = observations(experiments, likelihood())
    exact, evidence, _ = run(KalmanFilter(RING), seen, Streams(0, experiments, 2))
    state, estimate, least = run(method, seen, Streams(1, experiments, n))
    std = torch.diagonal(exact.covariance, dim1=-2, dim2=-1).sqrt()
    members, log_weights = method.ensemble(state)
    error = (weighted_mean(members, log_weights).flatten(1) - exact.mean) / std
    assert error.square().mean().sqrt() < 2.4 / least**0.5
    ratio = weighted_variance(members, log_weights).flatten(1).sqrt() / std
    # A standard deviation from ESS draws has the relative error 1 / sqrt(2 ESS); 48 values, hardly less than 8 free.
    assert abs(ratio.mean() - 1) < 3 / (2 * least * 8) ** 0.5 + 2 / n
    gap = estimate - evidence
    # The log evidence of one step is off by about sqrt((N / ESS - 1) / N) for weights and sqrt(m / N) for covariances.
    scale = (STEPS * 3 * max(n / least, 2) / n) ** 0.5
    assert gap.abs().max() < 4 * scale and gap.mean().abs() < 4 * scale / experiments**0.5 + scale**2


def test_particle_likelihood_is_unbiased():
    # E exp(estimate - exact) = 1, over 400 independent filters of 200 members each on the same observations.
    seen = [Observation(o.likelihood, o.y[0, 0]) for o in observations(1, likelihood(std=1.0))]
    _, evidence, _ = run(KalmanFilter(RING), seen, Streams(0, 1, 2), dtype=torch.float64)
    for method in (BootstrapFilter(RING), GuidedParticleFilter(RING)):
        _, estimate, _ = run(method, seen, Streams(3, 400, 200), dtype=torch.float64)
        ratio = torch.exp(estimate - evidence)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 400**0.5, method.name
        # And the bound is a sharp one.
        assert ratio.std() < 1.0


@EVERY
def test_nothing_to_see_leaves_the_prior(factory):
    """NaN, R -> infinity and H = 0: analysis = background."""
    method = factory(RING)
    rng = Streams(2, 2, 30)
    state = method.init(RING.prior((2, 30), rng=rng))
    free, _ = method.step(state, None, 1.0, rng=rng.at(1))
    forecast, equal = method.ensemble(free)
    zero = Likelihood(Matrix(RING.space, torch.zeros(2, CELLS)), GaussianNoise(std=0.5))
    cases = [
        Observation(likelihood(), torch.full((3,), math.nan)),
        Observation(likelihood(std=1e6), torch.zeros(3)),
        Observation(zero, torch.ones(2)),
    ]
    # A zero operator has no places to localise at.
    for observation in cases[:2] if method.name == "LETKF" else cases:
        after, _ = method.step(state, observation, 1.0, rng=rng.at(1))
        members, log_weights = method.ensemble(after)
        torch.testing.assert_close(log_weights, equal, atol=1e-4, rtol=0)
        if getattr(method, "rotate", False) and observation is not cases[0]:
            # The rotation mixes the members and keeps their law.
            torch.testing.assert_close(members.mean(1), forecast.mean(1), atol=1e-5, rtol=0)
            members, forecast = (torch.stack([torch.cov(m.flatten(1).T) for m in x]) for x in (members, forecast))
        torch.testing.assert_close(members, forecast, atol=1e-4, rtol=0)
        forecast = method.ensemble(free)[0]


@pytest.mark.parametrize("name", ["KalmanFilter", "EnKF", "ETKF", "LETKF", "GuidedParticleFilter"])
def test_perfect_observations_are_returned(name):
    """R -> 0: observed cells are the observations (in the space of the members, which 12 members span)."""
    std = 1e-3
    model = likelihood(std=std)
    method = FACTORIES[name](RING)
    seen = observations(1, model)[:1]
    state, _, _ = run(method, seen, Streams(4, 1, 12), dtype=torch.float64)
    members, log_weights = method.ensemble(state)
    found = model.operator(weighted_mean(members, log_weights))
    # LETKF: beside a cell its own observation the tapered neighbours hardly count, but they do.
    limit = 0.05 if name == "LETKF" else 5 * std
    assert (found - seen[0].y[:, 0]).abs().max() < limit


# The guided filter draws as many numbers as there are values; `check_filter` has a missing value in its comparison.
@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "GuidedParticleFilter"])
def test_one_missing_value_is_the_smaller_network(name):
    method = FACTORIES[name](RING)
    rng = Streams(5, 1, 40)
    state = method.init(RING.prior((1, 40), rng=rng, dtype=torch.float64))
    y = torch.tensor([0.3, math.nan, -0.4], dtype=torch.float64)
    fewer = Likelihood(Mask(RING.space, torch.tensor([0, 4])), GaussianNoise(std=0.5))
    full, info = method.step(state, Observation(likelihood(), y), 1.0, rng=rng.at(1))
    small, small_info = method.step(state, Observation(fewer, y[[0, 2]]), 1.0, rng=rng.at(1))
    pairs = list(zip(method.ensemble(full), method.ensemble(small), strict=True))
    if name == "EnKF":
        # Its perturbations follow the values, but do not move the mean.
        pairs = [(weighted_mean(*method.ensemble(s)) for s in (full, small))]
    for one, other in pairs:
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(info.log_evidence, small_info.log_evidence, equal_nan=True)


@pytest.mark.parametrize("name", ["ETKF", "LETKF"])
def test_members_may_be_permuted(name):
    """Deterministic analyses commute with a permutation of the members (observed at the initial time: no draws)."""
    method = FACTORIES[name](RING)
    members = RING.prior((2, 10), rng=Streams(6, 2, 10), dtype=torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    seen = observations(2, likelihood())[0]
    one, _ = method.step(method.init(members), seen, 0.0, rng=Streams(0, 2, 10))
    other, _ = method.step(method.init(members[:, order]), seen, 0.0, rng=Streams(0, 2, 10))
    torch.testing.assert_close(one.members[:, order], other.members)


@EVERY
def test_a_batch_of_experiments_is_a_loop(factory):
    method = factory(RING)
    seen = observations(3, likelihood())
    seen[1].y[1, 0, 0] = math.nan
    seen[2].y[2] = math.nan
    together, evidence, _ = run(method, seen, Streams(8, 3, 20), dtype=torch.float64)
    for e in range(3):
        part = [Observation(o.likelihood, o.y[e : e + 1]) for o in seen]
        alone, alone_evidence, _ = run(method, part, Streams(8, (e,), 20), dtype=torch.float64)
        torch.testing.assert_close(method.ensemble(alone)[0][0], method.ensemble(together)[0][e])
        torch.testing.assert_close(method.ensemble(alone)[1][0], method.ensemble(together)[1][e])
        torch.testing.assert_close(alone_evidence[0], evidence[e], equal_nan=True)


@pytest.mark.parametrize("name", ["EnKF", "ETKF", "LETKF", "BootstrapFilter", "GuidedParticleFilter"])
def test_divergence_is_named(name):
    class Explosive(LinearGaussian):
        def step(self, x, time, *, rng):
            out = super().step(x, time, rng=rng)
            return torch.where(torch.arange(len(x)).reshape(-1, 1, 1, 1) == 1, math.inf, out) if time >= 1 else out

        def moments(self, x, time):
            mean, covariance = super().moments(x, time)
            return (torch.full_like(mean, math.inf) if time >= 1 else mean), covariance

    system = Explosive(RING.matrix, RING.noise_covariance, RING.prior_mean, RING.prior_covariance, space=RING.space)
    method = FACTORIES[name](system)
    state = method.init(RING.prior((2, 10), rng=Streams(0, 2, 10)))
    seen = observations(2, likelihood())
    state, _ = method.step(state, seen[0], 1.0, rng=Streams(0, 2, 10).at(1))
    with pytest.raises(Diverged, match=rf"{method.name} diverged at time 2 \(last finite at 1\).*experiment") as caught:
        method.step(state, seen[1], 2.0, rng=Streams(0, 2, 10).at(2))
    assert caught.value.last_finite == 1.0


def test_collapsed_weights_are_named():
    method = BootstrapFilter(RING)
    state = method.init(RING.prior((1, 10), rng=Streams(0, 1, 10)))
    far = Observation(likelihood(std=1e-3), torch.full((3,), 1e25))
    with pytest.raises(Diverged, match="weights of experiment"):
        method.step(state, far, 1.0, rng=Streams(0, 1, 10))


def test_the_check_finds_a_wrong_gain_and_a_shared_stream():
    class Eager(EnKF):
        def step(self, state, observation, time, *, rng):
            after, info = super().step(state, observation, time, rng=rng)
            return after._replace(members=info.background + 1.5 * (after.members - info.background)), info

    with pytest.raises(ContractError, match=r"posterior standard deviations|spread"):
        check_filter(Eager)

    class Careless(EnKF):
        def step(self, state, observation, time, *, rng):
            after, info = super().step(state, observation, time, rng=rng)
            return after._replace(members=after.members + 1e-2 * torch.randn(after.members.shape)), info

    with pytest.raises(ContractError, match="one seed differ"):
        check_filter(Careless)

    class Mixed(ETKF):
        def step(self, state, observation, time, *, rng):
            after, info = super().step(state, observation, time, rng=rng)
            return after._replace(members=after.members + 1e-2 * after.members.mean(0)), info

    with pytest.raises(ContractError, match="another is added"):
        check_filter(Mixed)
