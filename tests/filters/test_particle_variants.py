"""Auxiliary and regularised particle filters: the Kalman filter's answer and its rate, closed forms, invariances."""

import math

import pytest
import torch

from assimilate.filters.auxiliary import AuxiliaryFilter
from assimilate.filters.check import check_filter
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.particle import BootstrapFilter, linearise
from assimilate.filters.regularised import RegularisedFilter, coloured, has_siblings
from assimilate.posterior.weights import log_normalize, weighted_mean
from dynamics import CapabilityError, LinearGaussian, Lorenz63, Streams
from observations import Arctan, GaussianNoise, Identity, Likelihood, Mask, Observation

CELLS, STEPS = 6, 6
RING = LinearGaussian.ring(CELLS)
VARIANTS = {
    "auxiliary": AuxiliaryFilter,
    "auxiliary, flattened": lambda d: AuxiliaryFilter(d, power=0.5, threshold=0.5),
    "fully adapted": lambda d: AuxiliaryFilter(d, proposal="guided"),
    "regularised, narrow": lambda d: RegularisedFilter(d, bandwidth=0.05),
    "regularised, shrunk": lambda d: RegularisedFilter(d, moved="all", shrinkage=True),
}
EVERY = pytest.mark.parametrize("factory", VARIANTS.values(), ids=VARIANTS.keys())


def likelihood(std=0.5):
    return Likelihood(Mask(RING.space, torch.arange(0, CELLS, 2)), GaussianNoise(std=std))


def observations(experiments, model, seed=7):
    rng = Streams(seed, experiments, 1)
    truth, found = RING.prior((experiments, 1), rng=rng, dtype=torch.float64), []
    for k in range(STEPS):
        truth = RING.step(truth, float(k), rng=rng.at(2 * k + 1))
        found.append(Observation(model, model.sample(truth, rng=rng.at(2 * k + 2))))
    return found


def run(method, seen, rng):
    state = method.init(RING.prior(rng.rows, rng=rng.at(0), dtype=torch.float64))
    evidence = 0.0
    for k, observation in enumerate(seen):
        state, info = method.step(state, observation, float(k + 1), rng=rng.at(k + 1))
        evidence = evidence + info.log_evidence
    return state, evidence


@EVERY
def test_contract(factory):
    check_filter(factory, members=400)


@EVERY
def test_errors_fall_as_one_over_the_root_of_the_members(factory):
    experiments = 8
    seen = observations(experiments, likelihood())
    exact, evidence = run(KalmanFilter(RING), seen, Streams(0, experiments, 2))
    std = torch.diagonal(exact.covariance, dim1=-2, dim2=-1).sqrt()
    errors, gaps = [], []
    for n in (150, 2400):
        state, estimate = run(factory(RING), seen, Streams(1, experiments, n))
        mean = weighted_mean(state.members, state.log_weights).flatten(1)
        errors.append(float(((mean - exact.mean) / std).square().mean().sqrt()))
        gaps.append(float((estimate - evidence).square().mean().sqrt()))
    # 16 times the members: 4 times the accuracy. Each figure is a root mean square of about 8 x 4 free values, known
    # to an eighth; their ratio to a sixth, three times that at most. Eight log evidences are known to a quarter.
    assert 4 / 1.6 < errors[0] / errors[1] < 4 * 1.6
    assert 4 / 2.4 < gaps[0] / gaps[1] < 4 * 2.4
    # And the error is that of a few hundred of the 2400 members, at worst.
    assert errors[1] < 2.4 / 400**0.5


def test_likelihood_is_unbiased():
    # E exp(estimate - exact) = 1, over 300 independent filters of 100 members each on the same observations.
    seen = [Observation(o.likelihood, o.y[0, 0]) for o in observations(1, likelihood(std=1.0))]
    _, evidence = run(KalmanFilter(RING), seen, Streams(0, 1, 2))
    for name in ("auxiliary", "auxiliary, flattened", "fully adapted"):
        _, estimate = run(VARIANTS[name](RING), seen, Streams(3, 300, 100))
        ratio = torch.exp(estimate - evidence)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / 300**0.5, name
        # And the bound is a sharp one.
        assert ratio.std() < 1.0, name


def test_full_adaption_leaves_nothing_to_the_weights():
    """Guided, linear: equal weights, and an evidence that is known before anything is drawn."""
    method = AuxiliaryFilter(RING, proposal="guided")
    members = RING.prior((2, 50), rng=Streams(0, 2, 50), dtype=torch.float64)
    seen = observations(2, likelihood())[0]
    state, info = method.step(method.init(members), seen, 1.0, rng=Streams(1, 2, 50))
    torch.testing.assert_close(state.log_weights, torch.full((2, 50), -math.log(50), dtype=torch.float64))
    h = seen.likelihood.operator.matrix()
    mean, covariance = RING.moments(members, 0.0)
    s = h @ covariance.dense().double() @ h.T + 0.25 * torch.eye(3, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(mean.flatten(2) @ h.T, s)
    predicted = law.log_prob(seen.y.flatten(2))
    torch.testing.assert_close(info.log_evidence, torch.logsumexp(predicted, -1) - math.log(50))
    relative = linearise(mean, covariance, seen).log_evidence()
    torch.testing.assert_close(relative - relative[:, :1], predicted - predicted[:, :1])


def test_a_perfect_guess_makes_equal_weights():
    """Without model noise the first stage is the likelihood itself, and the evidence that of the bootstrap filter."""
    system = Lorenz63()
    seen = Observation(Likelihood(Identity(system.space), GaussianNoise(std=2.0)), torch.tensor([1.0, 1.0, 25.0]))
    members = system.prior((2, 300), rng=Streams(0, 2, 300), dtype=torch.float64)
    auxiliary, bootstrap = AuxiliaryFilter(system), BootstrapFilter(system)
    state, info = auxiliary.step(auxiliary.init(members), seen, 0.25, rng=Streams(1, 2, 300))
    _, other = bootstrap.step(bootstrap.init(members), seen, 0.25, rng=Streams(1, 2, 300))
    torch.testing.assert_close(state.log_weights, torch.full((2, 300), -math.log(300), dtype=torch.float64))
    torch.testing.assert_close(info.log_evidence, other.log_evidence)
    # What the weights of the background stand for is the forecast, not the choice.
    mean = weighted_mean(info.background, info.background_log_weights)
    forecast = weighted_mean(other.background, torch.full((2, 300), -math.log(300), dtype=torch.float64))
    kept = torch.exp(-info.background_log_weights).mean(-1)
    assert ((mean - forecast).abs() < 30 * (kept / 300).sqrt().unsqueeze(-1)).all()
    torch.testing.assert_close(log_normalize(info.background_log_weights)[1], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "method",
    [AuxiliaryFilter(RING, power=0.0, threshold=0.5), RegularisedFilter(RING, bandwidth=0.0)],
    ids=lambda m: m.name,
)
def test_switched_off_it_is_the_bootstrap_filter(method):
    seen = observations(2, likelihood())
    ours, theirs = (run(m, seen, Streams(4, 2, 60)) for m in (method, BootstrapFilter(RING)))
    torch.testing.assert_close(ours[0].members, theirs[0].members)
    torch.testing.assert_close(ours[0].log_weights, theirs[0].log_weights)
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("size", [3, 12])
def test_kernels_have_the_weighted_covariance(size):
    """From the root of P and from the anomalies: with the identity for random numbers, draws^T draws = P."""
    g = torch.Generator().manual_seed(0)
    n = 8
    members = torch.randn(2, n, size, generator=g, dtype=torch.float64)
    log_weights = torch.log_softmax(torch.randn(2, n, generator=g, dtype=torch.float64), -1)
    rank = min(n, size)
    identity = torch.eye(rank, dtype=torch.float64).expand(2, rank, rank)
    draws = coloured(identity, members, log_weights)
    for e in range(2):
        expected = torch.cov(members[e].T, aweights=log_weights[e].exp())
        torch.testing.assert_close(draws[e].T @ draws[e], expected)
    alone = torch.full((2, n), -torch.inf, dtype=torch.float64)
    alone[:, 3] = 0.0
    draws = coloured(identity, members, alone)
    torch.testing.assert_close(draws[0].T @ draws[0], torch.cov(members[0].T))


def test_jitter_adds_the_variance_of_the_kernel_and_shrinkage_takes_it_back():
    system = LinearGaussian.scalar(1.0, 1e-9)
    n = 20_000
    members = system.prior((1, n), rng=Streams(0, 1, n), dtype=torch.float64)
    width = n ** (-1 / 5) * 3
    before = members.var()
    for shrinkage, expected in ((False, before * (1 + width**2)), (True, before)):
        method = RegularisedFilter(system, threshold=1.0, bandwidth=3.0, moved="all", shrinkage=shrinkage)
        state, _ = method.step(method.init(members), None, 1.0, rng=Streams(1, 1, n))
        assert abs(state.members.var() / expected - 1) < 5 * (2 / n) ** 0.5
        assert abs(state.members.mean() - members.mean()) < 5 * (before / n) ** 0.5


def test_only_copies_move():
    ancestors = torch.tensor([[0, 0, 2, 3, 3, 3]])
    assert has_siblings(ancestors).tolist() == [[True, True, False, True, True, True]]
    system = Lorenz63(noise_std=0.0)
    method = RegularisedFilter(system, threshold=0.99)
    members = system.prior((2, 40), rng=Streams(0, 2, 40), dtype=torch.float64)
    state = method.init(members)
    # Only the second experiment has weights to resample by.
    logs = torch.stack([state.log_weights[0], torch.log_softmax(members[1, :, 0] / 4, -1)])
    after, info = method.step(state._replace(log_weights=logs), None, 0.0, rng=Streams(1, 2, 40))
    assert torch.equal(after.members[0], members[0])
    copies = has_siblings(info.ancestors)[1]
    parents = members[1][info.ancestors[1]]
    moved = (after.members[1] != parents).any(-1)
    assert torch.equal(moved, copies) and 5 < int(copies.sum()) < 40


def test_jitter_keeps_a_filter_without_model_noise_alive():
    system = Lorenz63(dt=0.01)
    model = Likelihood(Identity(system.space), GaussianNoise(std=2**0.5))
    rng = Streams(3, 2, 200)
    truth = system.prior((2, 1), rng=Streams(9, 2, 1))
    start = truth + 2 * torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    methods = [BootstrapFilter(system), RegularisedFilter(system, bandwidth=1.5)]
    states = [method.init(start) for method in methods]
    errors = torch.zeros(2, 2)
    for k in range(1, 25):
        for _ in range(25):
            truth = system.step(truth, 0.0, rng=None)
        seen = Observation(model, model.sample(truth, rng=Streams(5, 2, 1, step=k)))
        for j, method in enumerate(methods):
            states[j], _ = method.step(states[j], seen, k * 0.25, rng=rng.at(k))
            if k > 12:
                error = weighted_mean(*method.ensemble(states[j])) - truth[:, 0]
                errors[j] += error.square().mean(-1).sqrt() / 12
    assert len(states[0].members[0].unique(dim=0)) < 20 and len(states[1].members[0].unique(dim=0)) > 150
    assert errors[1].max() < 1.0


def test_observing_with_a_curve_agrees_with_the_bootstrap_filter():
    system = Lorenz63(noise_std=0.8)
    model = Likelihood(Arctan(system.space, channels=0, scale=8.0), GaussianNoise(std=0.25))
    n, found = 8000, []
    for method in (BootstrapFilter(system), AuxiliaryFilter(system), AuxiliaryFilter(system, proposal="guided")):
        rng = Streams(len(found), 1, n)
        state = method.init(system.prior((1, n), rng=rng, dtype=torch.float64))
        evidence = 0.0
        for k in range(1, 4):
            seen = Observation(model, torch.full((1,), 0.3, dtype=torch.float64))
            state, info = method.step(state, seen, 4 * k * system.dt, rng=rng.at(k))
            evidence = evidence + info.log_evidence
        found.append((weighted_mean(*method.ensemble(state))[0], float(evidence)))
    for mean, evidence in found[1:]:
        # Effective sizes are above n / 4; two estimates, three steps.
        limit = 5 * (6 * 4 / n) ** 0.5
        assert abs(evidence - found[0][1]) < limit
        assert ((mean - found[0][0]).abs() < limit * 9).all()


def test_settings_and_capabilities():
    for wrong in ({"proposal": "best"}, {"power": 1.5}, {"threshold": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AuxiliaryFilter(RING, **wrong)
    for wrong in ({"bandwidth": -1.0}, {"moved": "some"}, {"shrinkage": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RegularisedFilter(RING, **wrong)

    class NoDensity:
        space, dt = RING.space, 1.0

        def step(self, x, time, *, rng):
            return x

    with pytest.raises(CapabilityError, match="proposal='bootstrap'"):
        AuxiliaryFilter(NoDensity(), proposal="guided")
