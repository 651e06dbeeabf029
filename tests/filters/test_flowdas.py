"""FlowDAS: exact weights whatever the guidance, the Kalman filter on linear systems, missing data, determinism."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.filters.check import check_filter
from assimilate.filters.flowdas import FlowDAS
from assimilate.filters.kalman import KalmanFilter
from assimilate.posterior.guidance import DPS, MMPS, JacobianFree
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.samplers import Ancestral, EulerMaruyama
from assimilate.posterior.time_grids import uniform_times
from assimilate.posterior.transition import ExactTransition
from dynamics.linear import LinearGaussian
from dynamics.random import Streams, normal
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Identity

N = 20_000
SYSTEM = LinearGaussian.scalar(0.9, 1.0)
LIKELIHOOD = Likelihood(Identity((1,)), GaussianNoise(0.5))
Y = torch.tensor([2.0], dtype=torch.float64)
# x_0 = 0.5 known: x_1 ~ N(0.45, 1), y = 2.
GAIN = 1 / 1.25
MEAN, VARIANCE = 0.45 + GAIN * 1.55, 1 - GAIN
EVIDENCE = -0.5 * 1.55**2 / 1.25 - 0.5 * math.log(2 * math.pi * 1.25)


def one_step(guidance, sampler, times=None, steps=50, scale=1.0):
    transition = ExactTransition(SYSTEM, path=Interpolant(scale=scale), steps=steps)
    flow = FlowDAS(transition, guidance=guidance, sampler=sampler, times=times, weights="global", threshold=0)
    start = flow.init(torch.full((1, N, 1), 0.5, dtype=torch.float64))
    state, info = flow.step(start, Observation(LIKELIHOOD, Y), 1.0, rng=Streams(1, 1, N))
    weights = state.log_weights.exp()[0]
    mean = float((weights * state.members[0, :, 0]).sum())
    variance = float((weights * (state.members[0, :, 0] - mean) ** 2).sum())
    return mean, variance, float(info.log_evidence), float(info.ess) / N


@pytest.mark.parametrize(
    ("guidance", "strength"),
    [(JacobianFree(), "good"), (MMPS(iterations=1), "good"), (JacobianFree(strength=0.5), "poor"), (None, "none")],
)
@pytest.mark.parametrize(
    "sampler", [Ancestral(variance="upper"), EulerMaruyama("foellmer")], ids=["ancestral", "euler-maruyama"]
)
def test_weights_are_exact_whatever_the_guidance(guidance, strength, sampler):
    # Rule 5. Tolerance: 5 standard errors at the measured ESS, plus Euler-Maruyama's step error (0.02 at 50 steps).
    times = uniform_times(50, dtype=torch.float64) if isinstance(sampler, EulerMaruyama) else None
    mean, variance, evidence, ess = one_step(guidance, sampler, times)
    error = 5 / math.sqrt(ess * N)
    step = 0.02 if times is not None else 0.002
    assert abs(mean - MEAN) < step + error * math.sqrt(VARIANCE)
    assert abs(variance - VARIANCE) < step + error * math.sqrt(2) * VARIANCE
    assert abs(evidence - EVIDENCE) < step + 5 / math.sqrt(ess * N) * 2
    expected = {"good": (0.9, 1.0), "poor": (0.2, 0.9), "none": (0.2, 0.3)}[strength]
    assert expected[0] < ess <= expected[1]


def test_effective_sample_size_tends_to_one_with_the_foellmer_diffusion_alone():
    # Rule 4, 1-D Gaussian, exact guidance: the h-transform's weights become equal, those of diffusion sigma degenerate.
    found = {}
    for steps in (50, 200):
        times = uniform_times(steps, dtype=torch.float64)
        for kind in ("foellmer", "sigma"):
            found[kind, steps] = one_step(MMPS(iterations=1), EulerMaruyama(kind), times)[3]
    assert found["foellmer", 50] > 0.9 and found["foellmer", 200] > 0.97
    assert found["sigma", 200] < 0.2 and found["sigma", 200] < found["sigma", 50]


@pytest.mark.parametrize("kind", ["sigma", "foellmer"])
def test_guided_transition_equals_the_kalman_update_without_weights(kind):
    # T9, E.2: an exact gain gives the posterior itself. The tempting gain sigma^2 would give mean 1.54, not 2.13.
    transition = ExactTransition(SYSTEM, path=Interpolant())
    times = uniform_times(400, dtype=torch.float64)
    flow = FlowDAS(transition, guidance=MMPS(iterations=1), sampler=EulerMaruyama(kind), times=times, weights="none")
    start = flow.init(torch.full((1, N, 1), 0.5, dtype=torch.float64))
    state, info = flow.step(start, Observation(LIKELIHOOD, Y), 1.0, rng=Streams(1, 1, N))
    # Euler-Maruyama is first order: 0.5 / 400 of the mean's move, plus 5 standard errors.
    assert abs(float(state.members.mean()) - MEAN) < 0.01 + 5 * math.sqrt(VARIANCE / N)
    assert abs(float(state.members.var()) - VARIANCE) < 0.01 + 5 * VARIANCE * math.sqrt(2 / N)
    assert math.isnan(float(info.log_evidence)) and info.weighting == "none"


def test_cycles_against_the_kalman_filter():
    system = LinearGaussian.ring(6)
    likelihood = Likelihood(Identity((1, 6)), GaussianNoise(0.5))
    members, experiments, cycles = 4000, 2, 5
    truth = system.prior((experiments, 1), rng=Streams(1, experiments, 1), dtype=torch.float64)
    flow = FlowDAS(ExactTransition(system, steps=16), guidance=MMPS(iterations=6), sampler=Ancestral(variance="upper"))
    kalman = KalmanFilter(system)
    initial = system.prior((experiments, members), rng=Streams(2, experiments, members), dtype=torch.float64)
    ours, exact = flow.init(initial), kalman.init(initial)
    evidence = torch.zeros(2, experiments, dtype=torch.float64)
    for k in range(1, cycles + 1):
        truth = system.step(truth, 0.0, rng=Streams(3, experiments, 1, step=k))
        y = likelihood.sample(truth, rng=Streams(4, experiments, 1, step=k))
        observation = Observation(likelihood, y)
        ours, info = flow.step(ours, observation, float(k), rng=Streams(5, experiments, members).at(k))
        exact, expected = kalman.step(exact, observation, float(k), rng=Streams(5, experiments, members).at(k))
        evidence += torch.stack([info.log_evidence, expected.log_evidence])
    mean = (ours.log_weights.exp()[..., None, None] * ours.members).sum(1)
    std = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt().reshape(mean.shape)
    # ESS stays above 500 of 4000; 6 standard errors over 12 values.
    assert float(((mean - exact.mean.reshape(mean.shape)) / std).abs().max()) < 6 / math.sqrt(500)
    # The evidence adds one error of about 1/sqrt(ESS) a cycle.
    assert float((evidence[0] - evidence[1]).abs().max()) < 5 * math.sqrt(cycles / 500)


def test_missing_observations_are_a_forecast_and_seeds_repeat():
    transition = ExactTransition(SYSTEM, steps=8)
    flow = FlowDAS(transition)
    start = flow.init(normal(Streams(0, 2, 50), (2, 50, 1)))
    gap = Observation(LIKELIHOOD, torch.full((1,), torch.nan))
    nothing, info = flow.step(start, None, 1.0, rng=Streams(1, 2, 50).at(1))
    missing, _ = flow.step(start, gap, 1.0, rng=Streams(1, 2, 50).at(1))
    torch.testing.assert_close(missing.members, nothing.members)
    assert float(info.log_evidence.abs().max()) == 0
    seen = Observation(LIKELIHOOD, Y.float())
    first, _ = flow.step(start, seen, 1.0, rng=Streams(1, 2, 50).at(1))
    again, _ = flow.step(start, seen, 1.0, rng=Streams(1, 2, 50).at(1))
    assert torch.equal(first.members, again.members)
    # An experiment never looks at another.
    alone, _ = flow.step(flow.init(start.members[:1]), seen, 1.0, rng=Streams(1, 1, 50).at(1))
    torch.testing.assert_close(alone.members[0], first.members[0])


def test_weights_are_off_above_the_limit_and_say_so():
    system = LinearGaussian.ring(20)
    likelihood = Likelihood(Identity((1, 20)), GaussianNoise(0.5))
    flow = FlowDAS(ExactTransition(system, steps=6), weight_limit=10)
    state = flow.init(system.prior((1, 30), rng=Streams(0, 1, 30)))
    after, info = flow.step(state, Observation(likelihood, torch.zeros(1, 20)), 1.0, rng=Streams(1, 1, 30))
    assert info.weighting == "none" and float(info.ess) == pytest.approx(30)
    assert float(after.log_weights.std()) < 1e-6


def test_bad_settings_speak():
    with pytest.raises(ValueError, match="needs a generative transition"):
        FlowDAS(SYSTEM)
    with pytest.raises(ValueError, match="weights is 'local'"):
        FlowDAS(ExactTransition(SYSTEM), weights="local")
    flow = FlowDAS(ExactTransition(SYSTEM), guidance=DPS(gain="constant"), weights="global")
    with pytest.raises(ValueError, match="no importance weight"):
        flow.step(flow.init(torch.zeros(1, 5, 1)), Observation(LIKELIHOOD, Y.float()), 1.0, rng=Streams(0, 1, 5))


def test_flowdas_keeps_the_contract_of_a_filter():
    check_filter(lambda d: FlowDAS(ExactTransition(d, steps=12), sampler=Ancestral(variance="upper"), weights="global"))
