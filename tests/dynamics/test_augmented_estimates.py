"""Parameters that are estimated: closed forms where there are some, recovery within the spread elsewhere."""

import math

import pytest
import torch

from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.extended_kalman import ExtendedKalmanFilter
from assimilate.filters.finite_size import EnKFN
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.local import LETKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.filters.regularised import RegularisedFilter
from assimilate.posterior.weights import weighted_mean, weighted_variance
from assimilate.smoothers.iterative import IEnKS
from assimilate.smoothers.multiple_data import ESMDA
from assimilate.variational.background import DiagonalBackground
from assimilate.variational.four_dimensional import FourDVar
from dynamics import (
    CapabilityError,
    Lorenz63,
    Lorenz96,
    Streams,
    TransitionDensity,
)
from dynamics.augmented import Augmented
from dynamics.parameters import Parameter
from observations import GaussianNoise, Identity, Likelihood
from observations.augmented import observing
from observations.likelihood import Observation
from tests.dynamics.augmented_cases import CASES, RHO, Biased, filtered

# -------------------------------------------------------------------------------------------------- closed forms


def linear_problem(noise_std=0.3, steps=12, walk=0.0):
    augmented = Augmented(Biased(noise_std=noise_std), (Parameter("bias", 0.2, 0.4, walk=walk, units="K"),))
    likelihood = Likelihood(observing(Identity(augmented.dynamics.space), augmented), GaussianNoise(std=0.5))
    y = 2.0 + 0.6 * torch.randn(steps, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return augmented, [Observation(likelihood, value) for value in y], y


def kalman_by_hand(y, noise_std, walk):
    """The two-dimensional Kalman filter of (x, bias), written out."""
    matrix = torch.tensor([[0.8, 1.0], [0.0, 1.0]], dtype=torch.float64)
    mean, covariance = torch.tensor([1.0, 0.2]).double(), torch.diag(torch.tensor([0.25, 0.16])).double()
    noise = torch.diag(torch.tensor([noise_std**2, walk**2])).double()
    for value in y:
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix.T + noise
        gain = covariance[:, 0] / (covariance[0, 0] + 0.25)
        mean = mean + gain * (value - mean[0])
        covariance = covariance - torch.outer(gain, covariance[0])
    return mean, covariance


@pytest.mark.parametrize("walk", [0.0, 0.05])
def test_kalman_filters_are_exact(walk):
    augmented, observations, y = linear_problem(walk=walk)
    assert isinstance(augmented, TransitionDensity)
    mean, covariance = kalman_by_hand(y, 0.3, walk)
    for method in (KalmanFilter(augmented), ExtendedKalmanFilter(augmented, prior="dynamics")):
        state = filtered(method, observations, 1, 4)
        assert torch.allclose(state.mean[0], mean, atol=1e-10)
        if isinstance(method, KalmanFilter):
            assert torch.allclose(state.covariance[0], covariance, atol=1e-10)


def test_the_ensemble_filter_converges_to_it():
    augmented, observations, y = linear_problem()
    mean, covariance = kalman_by_hand(y, 0.3, 0.0)
    errors, spreads = [], []
    counts, experiments = (40, 640), 100
    for members in counts:
        found = filtered(EnKF(augmented), observations, experiments, members).members
        error = found.mean(1) - mean
        errors.append(error.square().mean(0).sqrt())
        spreads.append(found.var(1).mean(0))
    # Error goes with N^-1/2: a factor of 4, each known to 1 / sqrt(2 E) = 7 %, the ratio to 10 %.
    assert bool(((errors[0] / errors[1] / 4).log().abs() < 0.4).all())
    limit = 5 * covariance.diagonal().sqrt() / math.sqrt(counts[1] * experiments)
    # Beside the error of the sample there is a bias of order 1 / N.
    assert bool((error.mean(0).abs() < limit + 4 * covariance.diagonal().sqrt() / counts[1]).all())
    assert torch.allclose(spreads[1], covariance.diagonal(), rtol=0.02)


def test_variational_and_smoothers_find_the_exact_bias():
    augmented, observations, y = linear_problem(noise_std=0.0)
    window, times = [None, *observations], [float(k) for k in range(len(y) + 1)]
    mean, covariance = kalman_by_hand(y, 0.0, 0.0)
    # With a perfect model the last state of the smoother is that of the filter.
    drawn, info = FourDVar(augmented).solve(window, times, 4000, rng=Streams(0, 1, 4000))
    assert torch.allclose(info.mean[0, -1], mean, atol=1e-6)
    error = torch.sqrt((covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / 4000)
    assert bool(((torch.cov(drawn[0, :, -1].mT) - covariance).abs() < 5 * error).all())
    for smoother in (IEnKS(augmented), ESMDA(augmented)):
        drawn, _ = smoother.solve(window, times, 4000, rng=Streams(1, 1, 4000))
        last = drawn[0, :, -1]
        assert bool(((last.mean(0) - mean).abs() < 6 * covariance.diagonal().sqrt() / math.sqrt(4000)).all())
        assert torch.allclose(last.var(0), covariance.diagonal(), rtol=6 * math.sqrt(2 / 4000))


def test_densities_are_the_products_of_both_parts():
    parameters = (Parameter("sigma", 10.0, 1.0, walk=0.2), Parameter("rho", 28.0, 1.0, memory=0.5))
    augmented = Augmented(Lorenz63.flowdas(), parameters)
    x = augmented.prior((2, 3), rng=Streams(0, 2, 3), dtype=torch.float64)
    x_next = augmented.step(x, 0.0, rng=Streams(1, 2, 3))
    mean, covariance = augmented.moments(x, 0.0)
    dense = covariance.dense()
    expected = torch.distributions.MultivariateNormal(mean, dense).log_prob(x_next)
    assert torch.allclose(augmented.log_prob(x_next, x, 0.0), expected, rtol=1e-10)
    assert torch.allclose(covariance.log_prob(x_next - mean), expected, rtol=1e-10)
    assert torch.allclose(dense.diagonal(), covariance.diagonal())
    z = torch.randn(50_000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = torch.sqrt((dense**2 + torch.outer(dense.diagonal(), dense.diagonal())) / 50_000)
    assert bool(((torch.cov(covariance.colour(z).mT) - dense).abs() < 5 * error + 1e-12).all())
    ring = Augmented(Lorenz96(size=6, noise_std=0.1), (Parameter("forcing", 8.0, 1.0, walk=0.2),))
    _, covariance = ring.moments(ring.prior((1, 1), rng=Streams(0), dtype=torch.float64), 0.0)
    z = torch.randn(50_000, 2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(torch.cov(covariance.colour(z).flatten(1).mT), covariance.dense(), atol=2e-3)
    assert not isinstance(Augmented(*CASES["flow"][:2]), TransitionDensity)
    assert not isinstance(Augmented(*CASES["noise, in a loop"][:2]), TransitionDensity)
    constant = Augmented(Lorenz63.flowdas(), (RHO,))
    with pytest.raises(CapabilityError, match="'rho' does not change"):
        constant.log_prob(x[..., :4], x[..., :4], 0.0)


# -------------------------------------------------------------------------------------------------- recovery


def twin(augmented, operator, *, experiments, cycles, every, std, spinup=0):
    """Truths whose parameters are draws of the prior, and their observations."""
    likelihood = Likelihood(observing(operator, augmented), GaussianNoise(std=std))
    streams = Streams(5, experiments, 1)
    x = augmented.prior((experiments, 1), rng=streams.at(0), dtype=torch.float64)
    for k in range(spinup):
        x = augmented.step(x, 0.0, rng=streams.at(k + 1))
    observations = []
    for k in range(cycles):
        for j in range(every):
            x = augmented.step(x, 0.0, rng=streams.at(10_000 + k * every + j))
        observations.append(Observation(likelihood, likelihood.sample(x, rng=streams.at(20_000 + k))))
    return x[:, 0], observations


def departures(method, state, truth):
    """Error over spread `(E, P)`, and the error of the parameters in tensor units."""
    members, log_weights = method.ensemble(state)
    error = (weighted_mean(members, log_weights) - truth)[:, 3:]
    return error / weighted_variance(members, log_weights).sqrt()[:, 3:], error


LORENZ = Augmented(
    Lorenz63(dt=0.02),
    (Parameter("sigma", 10.0, 1.0, positive=True), RHO, Parameter("beta", 8 / 3, 0.3, positive=True)),
)


@pytest.mark.parametrize(
    ("method", "members"),
    [(ETKF(LORENZ), 20), (EnKFN(LORENZ), 20), (EnKF(LORENZ), 80)],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_lorenz63_parameters_are_found_within_their_spread(method, members):
    truth, observations = twin(LORENZ, Identity(LORENZ.dynamics.space), experiments=32, cycles=40, every=5, std=1.0)
    white, error = departures(method, filtered(method, observations, 32, members, dt=0.1), truth)
    # 96 squares of standard normals have the mean 1 with a standard error of 0.14; N = 20 adds its own.
    assert 0.4 < float(white.square().mean()) < 1.6
    assert float(white.abs().max()) < 4.5
    prior = torch.tensor([0.1, 3.0, 0.1125])
    assert bool((error.square().mean(0).sqrt() < prior * torch.tensor([0.6, 0.1, 0.2])).all())


def test_particles_find_a_parameter_and_jitter_keeps_them_apart():
    augmented = Augmented(Lorenz63.flowdas(), (RHO,))
    truth, observations = twin(
        augmented, Identity(augmented.dynamics.space), experiments=8, cycles=20, every=4, std=2.0
    )
    distinct = {}
    for method in (BootstrapFilter(augmented), RegularisedFilter(augmented, moved="all", shrinkage=True)):
        state = filtered(method, observations, 8, 1000, dt=0.1)
        distinct[method.name] = min(len(row.unique()) for row in state.members[..., 3])
    # A constant parameter can only lose values to resampling; kernels make new ones without more variance.
    assert distinct["bootstrap filter"] < 100 and distinct["regularised particle filter"] == 1000
    white, error = departures(method, state, truth)
    assert 0.3 < float(white.square().mean()) < 2.5
    assert float(error.square().mean().sqrt()) < 0.2 * 3.0


def test_no_member_is_ever_negative():
    # Half of the draws of a Gaussian of this spread would be below a third of the guess, a sixth below 0.
    augmented = Augmented(Lorenz63(dt=0.02), (Parameter("beta", 8 / 3, 8 / 3, positive=True),))
    _, observations = twin(augmented, Identity((3,)), experiments=8, cycles=20, every=5, std=1.0)
    state = filtered(ETKF(augmented, inflation=1.1), observations, 8, 20, dt=0.1)
    assert float(augmented.values(state.members)["beta"].min()) > 0


def test_a_local_filter_finds_one_number_for_the_grid():
    augmented = Augmented(Lorenz96(), (Parameter("forcing", 8.0, 1.0),))
    space = augmented.dynamics.space
    truth, observations = twin(augmented, Identity(space), experiments=8, cycles=60, every=1, std=1.0, spinup=50)
    true = augmented.values(truth)["forcing"]
    found = augmented.values(filtered(LETKF(augmented, radius=4.0, inflation=1.04), observations, 8, 10, 0.05).members)
    error = (found["forcing"].mean(1) - true).square().mean().sqrt()
    assert float(error) < 0.25 and float(error) < 2 * float(found["forcing"].std(1).mean())
    # Without localisation every cell's copy gets the same analysis: that of the global filter.
    some = observations[:3]
    wide = filtered(LETKF(augmented, radius=math.inf), some, 8, 10, 0.05).members
    assert torch.allclose(wide, filtered(ETKF(augmented), some, 8, 10, 0.05).members, atol=1e-8)


def test_variational_assimilation_finds_rho():
    augmented = Augmented(Lorenz63(dt=0.02), (RHO,))
    truth, observations = twin(augmented, Identity((3,)), experiments=4, cycles=4, every=5, std=0.5)
    background = DiagonalBackground(augmented.space, (8.0, 9.0, 8.6, 3.0), mean=torch.tensor([0.0, 0.0, 25.0, 28.0]))
    method = FourDVar(augmented, background)
    drawn, info = method.solve([None, *observations], [0.1 * k for k in range(5)], 32, rng=Streams(0, 4, 32))
    white = (info.mean[:, -1, 3] - truth[:, 3]) / drawn[:, :, -1, 3].std(1)
    assert float((info.mean[:, -1, 3] - truth[:, 3]).square().mean().sqrt()) < 0.2 * 3.0
    assert float(white.square().mean()) < 4.0  # four squares: 1 with a standard error of 0.7
