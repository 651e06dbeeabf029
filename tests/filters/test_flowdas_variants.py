"""FlowDAS with solvers of imaging inverse problems: MMPS and DAPS on a transition, against the Kalman update."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.filters.flowdas import FlowDAS
from assimilate.posterior.corrections.daps import DAPS
from assimilate.posterior.guidance import MMPS
from assimilate.posterior.samplers import Ancestral, Renoise
from assimilate.posterior.transition import ExactTransition
from dynamics.linear import LinearGaussian
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.sampling import Identity

N = 8000
SYSTEM = LinearGaussian.scalar(0.9, 1.0)
LIKELIHOOD = Likelihood(Identity((1,)), GaussianNoise(0.5))
Y = torch.tensor([2.0], dtype=torch.float64)
# x_0 = 0.5 known: x_1 ~ N(0.45, 1), y = 2.
GAIN = 1 / 1.25
MEAN, VARIANCE = 0.45 + GAIN * 1.55, 1 - GAIN


def one_step(guidance, sampler, likelihood=LIKELIHOOD, y=Y, steps=10):
    flow = FlowDAS(ExactTransition(SYSTEM, steps=steps), guidance=guidance, sampler=sampler, weights="none")
    start = flow.init(torch.full((1, N, 1), 0.5, dtype=torch.float64))
    state, info = flow.step(start, Observation(likelihood, y), 1.0, rng=Streams(1, 1, N))
    assert info.weighting == "none"
    return float(state.members.mean()), float(state.members.var())


@pytest.mark.parametrize(
    ("guidance", "sampler", "steps", "bias"),
    [
        # The interpolant's spread is the transition's, so the matched variance is the clean state's own: exact.
        (DAPS(), Renoise(clean="given"), 10, 0.0),
        # Unadjusted Langevin steps: 1 / (1 - step / 2) at most.
        (DAPS(inner="langevin", step=0.1), Renoise(clean="given"), 10, 0.06),
        # DDPM steps of a finite grid lose variance, as 1 / steps.
        (MMPS(iterations=1), Ancestral(), 100, 0.1),
    ],
    ids=["daps", "daps-langevin", "mmps"],
)
def test_a_guided_transition_equals_the_kalman_update(guidance, sampler, steps, bias):
    # T9, without weights; 5 standard errors on top of each bias.
    mean, variance = one_step(guidance, sampler, steps=steps)
    assert abs(mean - MEAN) < 0.02 + 5 * math.sqrt(VARIANCE / N)
    assert abs(variance / VARIANCE - 1) < bias + 0.01 + 5 * math.sqrt(2 / N)


def test_the_published_daps_is_wider_on_a_transition_too():
    # Centre at the end of the flow, r = rho: infinite at the path's start, so the grid begins after it.
    transition = ExactTransition(SYSTEM, steps=40)
    flow = FlowDAS(
        transition, guidance=DAPS(centre="flow", variance="noise"), sampler=Renoise(clean="given"),
        times=transition.times[1:], weights="none",
    )
    start = flow.init(torch.full((1, N, 1), 0.5, dtype=torch.float64))
    state, _ = flow.step(start, Observation(LIKELIHOOD, Y), 1.0, rng=Streams(1, 1, N))
    assert float(state.members.var()) / VARIANCE == pytest.approx(1.10, abs=0.05)


def test_daps_with_a_nonlinear_observation():
    # Against quadrature of N(x; 0.45, 1) p(y | arctan x).
    likelihood = Likelihood(Arctan((1,), channels=[0], scale=1.0), GaussianNoise(0.3))
    y = torch.tensor([1.0], dtype=torch.float64)
    mean, variance = one_step(DAPS(steps=60, step=0.2), Renoise(clean="given"), likelihood, y, steps=5)
    grid = torch.linspace(-8, 9, 20_001, dtype=torch.float64)[:, None]
    density = torch.softmax(likelihood.log_prob(y, grid) - 0.5 * (grid[:, 0] - 0.45) ** 2, 0)
    exact = float((density * grid[:, 0]).sum())
    spread = float((density * (grid[:, 0] - exact) ** 2).sum())
    assert abs(mean - exact) < (0.05 + 5 / math.sqrt(N)) * math.sqrt(spread)
    # Unadjusted Langevin steps: 1 / (1 - step / 2) at most.
    assert variance / spread == pytest.approx(1, abs=0.11 + 5 * math.sqrt(2 / N))


def test_members_have_their_own_streams():
    flow = FlowDAS(ExactTransition(SYSTEM, steps=6), guidance=DAPS(), sampler=Renoise(clean="given"), weights="none")
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3, 1)
    seen = Observation(LIKELIHOOD, Y)
    every, _ = flow.step(flow.init(start), seen, 1.0, rng=Streams(4, 2, 3))
    alone, _ = flow.step(flow.init(start[:1, :1]), seen, 1.0, rng=Streams(4, 1, 1))
    torch.testing.assert_close(alone.members[0, 0], every.members[0, 0])
