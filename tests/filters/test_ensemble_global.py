"""DEnKF, serial EnSRF, EnKF and its perturbations: closed forms, invariances, the Kalman filter as N grows."""

import math

import pytest
import torch

from assimilate.filters.check import check_filter
from assimilate.filters.deterministic import DEnKF
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.finite_size import EnKFN
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.serial import SerialEnSRF
from assimilate.filters.transforms import serial_analysis, square_root_analysis
from assimilate.posterior.weights import uniform_log_weights
from dynamics import LinearGaussian, Streams
from observations import GaussianNoise, Likelihood, Mask, Matrix, Observation

CELLS, N = 6, 12
RING = LinearGaussian.ring(CELLS)
FACTORIES = {
    "DEnKF": DEnKF,
    "serial EnSRF": SerialEnSRF,
    "EnKF-N": EnKFN,
    "EnKF-N certain": lambda d: EnKFN(d, certainty=2.0),
    "EnKF independent": lambda d: EnKF(d, perturbations="independent"),
    "EnKF centred": lambda d: EnKF(d, perturbations="centred"),
    "serial EnSRF rotated": lambda d: SerialEnSRF(d, rotate=True),
}
EVERY = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


def members(seed=0, experiments=2, n=N):
    return RING.prior((experiments, n), rng=Streams(seed, experiments, n), dtype=torch.float64)


def observation(std=0.5, cells=(0, 2, 4), experiments=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(experiments, 1, len(cells), generator=g, dtype=torch.float64)
    return Observation(Likelihood(Mask(RING.space, torch.tensor(cells)), GaussianNoise(std=std)), y)


def analyse(method, x, seen, seed=3):
    return method.step(method.init(x), seen, 0.0, rng=Streams(seed, *x.shape[:2]))


def covariance(x):
    return torch.stack([torch.cov(one.flatten(1).T) for one in x])


def gain(x, seen):
    """Sample covariance, H and Kalman gain of each experiment, dense."""
    p = covariance(x)
    h = seen.likelihood.operator.matrix(dtype=torch.float64)
    r = seen.likelihood.noise.covariance_matrix(len(h), dtype=torch.float64)
    return p, h, p @ h.T @ torch.linalg.inv(h @ p @ h.T + r)


@EVERY
def test_contract(factory):
    check_filter(factory, members=400)


@EVERY
def test_nothing_to_see_leaves_the_prior(factory):
    """NaN to the last bit; R -> infinity and H = 0: mean and covariance."""
    x, method = members(), factory(RING)
    blind = observation()._replace(y=torch.full((3,), math.nan))
    assert torch.equal(analyse(method, x, blind)[0].members, x)
    zero = Likelihood(Matrix(RING.space, torch.zeros(2, CELLS)), GaussianNoise(std=0.5))
    for seen in (observation(std=1e7), Observation(zero, torch.ones(2, dtype=torch.float64))):
        after, _ = analyse(method, x, seen)
        torch.testing.assert_close(after.members.mean(1), x.mean(1), atol=1e-6, rtol=0)
        torch.testing.assert_close(covariance(after.members), covariance(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["serial EnSRF", "EnKF-N", "EnKF centred"])
def test_perfect_observations_are_returned(name):
    std = 1e-3
    seen = observation(std=std)
    after, _ = analyse(FACTORIES[name](RING), members(), seen)
    found = seen.likelihood.operator(after.members.mean(1, keepdim=True))
    assert (found - seen.y).abs().max() < 5 * std


def test_half_the_gain():
    x, seen = members(), observation()
    p, h, k = gain(x, seen)
    after, _ = analyse(DEnKF(RING), x, seen)
    mean = x.mean(1).flatten(1)
    expected = mean + torch.einsum("eij,ej->ei", k, seen.y[:, 0] - mean @ h.T)
    torch.testing.assert_close(after.members.mean(1).flatten(1), expected)
    half = torch.eye(CELLS, dtype=torch.float64) - 0.5 * k @ h
    torch.testing.assert_close(covariance(after.members), half @ p @ half.mT)
    # More than the Kalman filter's, by a positive semi-definite term.
    extra = covariance(after.members) - (p - k @ h @ p)
    assert torch.linalg.eigvalsh(extra)[:, 0].min() > -1e-12 and torch.linalg.eigvalsh(extra)[:, -1].min() > 1e-3


@pytest.mark.parametrize("full", [False, True], ids=["independent errors", "correlated errors"])
def test_serial_assimilation_is_the_kalman_update_of_the_sample(full):
    x, seen = members(), observation()
    if full:
        r = torch.tensor([[0.3, 0.1, 0.0], [0.1, 0.5, -0.2], [0.0, -0.2, 0.4]], dtype=torch.float64)
        seen = Observation(Likelihood(seen.likelihood.operator, GaussianNoise(covariance=r)), seen.y)
    after, info = analyse(SerialEnSRF(RING), x, seen)
    other, other_info = analyse(ETKF(RING), x, seen)
    p, h, k = gain(x, seen)
    torch.testing.assert_close(covariance(after.members), p - k @ h @ p)
    torch.testing.assert_close(after.members.mean(1), other.members.mean(1))
    torch.testing.assert_close(info.log_evidence, other_info.log_evidence)


def test_the_order_of_the_values_does_not_matter():
    x, seen = members(), observation()
    turned = Observation(observation(cells=(4, 0, 2)).likelihood, seen.y[..., [2, 0, 1]])
    for method, same in ((SerialEnSRF(RING), False), (DEnKF(RING), True), (EnKFN(RING), True)):
        one, other = analyse(method, x, seen)[0].members, analyse(method, x, turned)[0].members
        torch.testing.assert_close(one.mean(1), other.mean(1))
        torch.testing.assert_close(covariance(one), covariance(other))
        if same:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", [DEnKF(RING), SerialEnSRF(RING), EnKFN(RING)], ids=lambda m: m.name)
def test_members_may_be_permuted_and_the_state_scaled(method):
    x, seen = members(), observation()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    one = analyse(method, x, seen)[0].members
    torch.testing.assert_close(analyse(method, x[:, order], seen)[0].members, one[:, order])
    # Other units of the state and of the observations: the same analysis in those units.
    scaled = Observation(observation(std=50.0).likelihood, 100 * seen.y)
    torch.testing.assert_close(analyse(method, 100 * x, scaled)[0].members, 100 * one)


def test_one_missing_value_is_the_smaller_network():
    x = members()
    y = torch.tensor([0.3, math.nan, -0.4], dtype=torch.float64)
    full, fewer = observation().likelihood, observation(cells=(0, 4)).likelihood
    for method in (DEnKF(RING), SerialEnSRF(RING), EnKFN(RING)):
        one, info = analyse(method, x, Observation(full, y))
        other, other_info = analyse(method, x, Observation(fewer, y[[0, 2]]))
        torch.testing.assert_close(one.members, other.members)
        torch.testing.assert_close(info.log_evidence, other_info.log_evidence)


def test_a_batch_is_a_loop_and_other_dtypes_follow():
    x, seen = members(experiments=3), observation(experiments=3)
    seen.y[1, 0, 0] = math.nan
    for factory in FACTORIES.values():
        method = factory(RING)
        together, info = method.step(method.init(x), seen, 1.0, rng=Streams(8, 3, N))
        for e in range(3):
            rng = Streams(8, (e,), N)
            part = seen._replace(y=seen.y[e : e + 1])
            alone, alone_info = method.step(method.init(x[e : e + 1]), part, 1.0, rng=rng)
            torch.testing.assert_close(alone.members[0], together.members[e])
            torch.testing.assert_close(alone_info.log_evidence[0], info.log_evidence[e])
        single, _ = method.step(method.init(x.float()), seen._replace(y=seen.y.float()), 1.0, rng=Streams(8, 3, N))
        assert single.members.dtype == torch.float32
        torch.testing.assert_close(single.members.double(), together.members, atol=1e-4, rtol=1e-4)


def test_moments_of_the_perturbations():
    """What members get beside the Kalman update of themselves is the gain times the perturbations."""
    n, experiments = 5, 4000
    x = RING.prior((experiments, n), rng=Streams(0, experiments, n), dtype=torch.float64)
    seen = observation(cells=tuple(range(CELLS)), experiments=experiments)
    plain = {}
    for kind in ("rescaled", "centred", "independent"):
        plain[kind] = analyse(EnKF(RING, perturbations=kind), x, seen)[0].members
    exact = analyse(ETKF(RING), x, seen)[0].members.mean(1)
    # Centred perturbations leave the mean to the Kalman gain, independent ones do not.
    for kind in ("rescaled", "centred"):
        torch.testing.assert_close(plain[kind].mean(1), exact)
    assert (plain["independent"].mean(1) - exact).square().mean().sqrt() > 0.05
    # The same draws: deviations from the analysis without noise differ by sqrt(N / (N - 1)).
    _, h, k = gain(x, seen)
    still = torch.einsum("eij,enj->eni", torch.eye(CELLS, dtype=torch.float64) - k @ h, x.flatten(2)).reshape(x.shape)
    still = still - still.mean(1, keepdim=True)
    noise = {kind: one - one.mean(1, keepdim=True) - still for kind, one in plain.items()}
    torch.testing.assert_close(noise["rescaled"], math.sqrt(n / (n - 1)) * noise["centred"])
    torch.testing.assert_close(noise["independent"], noise["centred"])
    # Centred, their expected sample covariance is K R K^T.
    found = noise["centred"].flatten(2).square().sum((1, 2)) / (n - 1)
    expected = 0.25 * (k @ k.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    ratio = found / expected
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / experiments**0.5
    with pytest.raises(ValueError, match="perturbations is 'none'; expected one of rescaled, centred, independent"):
        EnKF(RING, perturbations="none")


@pytest.mark.parametrize(
    "factory", [SerialEnSRF, EnKFN, lambda d: EnKF(d, perturbations="independent")], ids=["EnSRF", "EnKF-N", "EnKF"]
)
def test_errors_fall_with_the_root_of_the_members(factory):
    """Analysis against the exact one over 64 experiments: error of the mean times sqrt(N) does not grow or fall."""
    experiments = 64
    seen = observation(experiments=experiments)
    exact = KalmanFilter(RING)
    few = members(experiments=experiments, n=2)
    state, info = analyse(exact, few, seen)
    std = torch.diagonal(state.covariance, dim1=-2, dim2=-1).sqrt()
    scaled, evidence = [], []
    for n in (50, 150, 450):
        after, found = analyse(factory(RING), members(seed=5, experiments=experiments, n=n), seen)
        error = (after.members.mean(1).flatten(1) - state.mean) / std
        scaled.append(float(error.square().mean().sqrt()) * n**0.5)
        evidence.append(float((found.log_evidence - info.log_evidence).square().mean().sqrt()) * n**0.5)
    for values in (scaled, evidence):
        # A root mean square over 64 x 6 dependent values has a relative error below 10 %: 4 of them.
        assert max(values) < 1.4 * min(values), values
    assert 0.3 < scaled[-1] < 3


def test_serial_and_simultaneous_algebra_agree():
    g = torch.Generator().manual_seed(4)
    anomalies = torch.randn(3, 7, 5, generator=g, dtype=torch.float64)
    anomalies = anomalies - anomalies.mean(1, keepdim=True)
    spread = anomalies @ torch.randn(5, 9, generator=g, dtype=torch.float64)
    departure = torch.randn(3, 9, generator=g, dtype=torch.float64)
    one, after = serial_analysis(anomalies, spread, departure)
    other, expected = square_root_analysis(anomalies, spread, departure)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(after.mT @ after, expected.mT @ expected)
    everything = [(torch.arange(14), torch.ones(14, dtype=torch.float64))] * 9
    one, after = serial_analysis(anomalies, spread, departure, everything)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(after.mT @ after, expected.mT @ expected)


def test_weights_stay_equal():
    state, info = analyse(SerialEnSRF(RING), members(), observation())
    torch.testing.assert_close(state.log_weights, uniform_log_weights(state.members))
    assert torch.equal(info.ess, torch.full((2,), float(N), dtype=torch.float64))
