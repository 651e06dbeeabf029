"""SDA against the RTS smoother on a linear-Gaussian chain, with the exact window prior."""

from __future__ import annotations

import math

import pytest
import torch

from assimilate.posterior.guidance import MMPS
from assimilate.posterior.paths import VE
from assimilate.posterior.predictors import GaussianPredictor
from assimilate.posterior.samplers import Ancestral, Heun
from assimilate.posterior.windows import WindowPrior
from assimilate.smoothers.rts import RTS
from assimilate.smoothers.sda import SDA
from dynamics.linear import LinearGaussian
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Identity

PHI, STD = 0.8, 0.6
STATIONARY = STD / math.sqrt(1 - PHI**2)
CHAIN = LinearGaussian.scalar(PHI, STD, prior_std=STATIONARY)


def exact_prior(order: int) -> WindowPrior:
    size = 2 * order + 1
    lag = (torch.arange(size)[:, None] - torch.arange(size)[None]).abs().double()
    path = VE(smallest=0.005, largest=40.0)
    predictor = GaussianPredictor(STATIONARY**2 * PHI**lag, path, torch.zeros(size, 1, dtype=torch.float64))
    return WindowPrior(CHAIN.space, 1.0, order, path, predictor, torch.zeros(1), torch.ones(1))


def problem(length=12):
    likelihood = Likelihood(Identity((1,)), GaussianNoise(0.5))
    rng = torch.Generator().manual_seed(3)
    y = torch.randn(length, 1, 1, 1, dtype=torch.float64, generator=rng)
    # Every third state is observed.
    observations = [Observation(likelihood, y[k]) if k % 3 == 0 else None for k in range(length)]
    times = [float(k) for k in range(length)]
    return observations, times


def errors(order, known, n=3000, steps=100):
    observations, times = problem()
    initial = torch.full((1, 1), 0.7, dtype=torch.float64) if known else None
    sda = SDA(exact_prior(order), guidance=MMPS(iterations=6), sampler=Heun(), steps=steps)
    drawn, _ = sda.solve(observations, times, n, rng=Streams(1, 1, n), initial=initial)
    _, info = RTS(CHAIN).solve(observations, times, 4, rng=Streams(1, 1, 4), initial=initial)
    mean, std = info.mean[0, :, 0], info.std[0, :, 0]
    free = slice(1, None) if known else slice(None)
    z = (drawn[0, :, :, 0].mean(0) - mean)[free] / std[free]
    return float(z.square().mean().sqrt()), (drawn[0, :, :, 0].std(0) / std)[free]


@pytest.mark.parametrize("known", [False, True])
def test_sda_is_calibrated_against_the_smoother(known):
    # The composition's own error at order 3 is below 0.05 posterior std; sampling adds 1/sqrt(n) = 0.02.
    error, ratio = errors(3, known)
    assert error < 0.08
    assert float(ratio.min()) > 0.92 and float(ratio.max()) < 1.08


def test_the_composition_error_falls_with_the_order():
    coarse, fine = errors(1, False)[0], errors(4, False)[0]
    assert fine < coarse


def test_the_requests_that_cannot_be_met_speak():
    observations, times = problem()
    sda = SDA(exact_prior(3), sampler=Ancestral())
    with pytest.raises(ValueError, match="windows hold states every 1"):
        sda.solve(observations, [2 * t for t in times], 3, rng=Streams(0, 1, 3))
    with pytest.raises(ValueError, match="needs at least 7"):
        sda.solve(observations[:4], times[:4], 3, rng=Streams(0, 1, 3))
    with pytest.raises(ValueError, match="nothing is observed"):
        sda.solve([None] * 8, times[:8], 3, rng=Streams(0, 1, 3))
