"""FlowDAS without weights: the smoothed start makes it the Kalman filter, and the past goes along with its member."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from assimilate.filters.ensemble import ETKF
from assimilate.filters.flowdas import FlowDAS
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.local import LETKF
from assimilate.filters.local_particle import LocalParticleFilter
from assimilate.posterior.guidance import MMPS
from assimilate.posterior.predictors import Context
from assimilate.posterior.samplers import Ancestral
from assimilate.posterior.transition import ExactTransition, Historical
from assimilate.runner import run as run_window
from dynamics.linear import LinearGaussian
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Identity, Mask

CELLS, CYCLES, EXPERIMENTS = 6, 6, 2


def run(smoothing, members: int, seed: int = 5, **ring):
    """Ensemble mean and variance of the last cycle, and the Kalman filter's."""
    # Little noise of its own: without an update of the start, members cannot follow the observations.
    system = LinearGaussian.ring(CELLS, decay=0.98, noise_std=0.1, **ring)
    likelihood = Likelihood(Mask(system.space, torch.tensor([0, 2, 3])), GaussianNoise(0.3))
    transition = ExactTransition(system, steps=12)
    flow = FlowDAS(
        transition, guidance=MMPS(iterations=3, solver="cg"), sampler=Ancestral(variance="upper"), weights="none",
        smoothing=None if smoothing is None else smoothing(transition),
    )
    kalman = KalmanFilter(system)
    initial = system.prior((EXPERIMENTS, members), rng=Streams(seed, EXPERIMENTS, members), dtype=torch.float64)
    truth = system.prior((EXPERIMENTS, 1), rng=Streams(1, EXPERIMENTS, 1), dtype=torch.float64)
    ours, exact = flow.init(initial), kalman.init(initial)
    for k in range(1, CYCLES + 1):
        truth = system.step(truth, 0.0, rng=Streams(3, EXPERIMENTS, 1, step=k))
        y = likelihood.sample(truth, rng=Streams(4, EXPERIMENTS, 1, step=k))
        streams = Streams(seed + 1, EXPERIMENTS, members).at(k)
        ours, info = flow.step(ours, Observation(likelihood, y), float(k), rng=streams)
        exact, _ = kalman.step(exact, Observation(likelihood, y), float(k), rng=streams)
    mean = ours.members.mean(1)
    variance = exact.covariance.diagonal(dim1=-2, dim2=-1).reshape(mean.shape)
    error = (mean - exact.mean.reshape(mean.shape)) / variance.sqrt()
    return error, ours.members.var(1) / variance, info


def test_a_smoothed_start_gives_the_kalman_filter() -> None:
    # N = 3000: standard error 0.018 of the mean, 0.026 of the variance; cycles add up to about twice that.
    error, ratio, info = run(ETKF, 3000)
    assert float(error.square().mean().sqrt()) < 0.06 and float(error.abs().max()) < 0.15
    assert abs(float(ratio.mean()) - 1) < 0.06
    assert info.weighting == "local"


def test_localised_weights_are_exact_where_cells_are_independent() -> None:
    # Cells that neither move nor share noise: the weights of a cell alone are all there is to know of it.
    def weigh(dynamics):
        return LocalParticleFilter(dynamics, radius=0.4, least_ess=0.0)

    error, ratio, info = run(weigh, 3000, shift=0, length=0.05)
    assert float(error.square().mean().sqrt()) < 0.08 and abs(float(ratio.mean()) - 1) < 0.08
    assert info.weighting == "local" and float(info.ess.min()) > 300 and float(info.ess.max()) < 2999


def test_without_it_the_ensemble_ignores_what_the_past_should_have_learned() -> None:
    error, _, info = run(None, 500)
    assert float(error.square().mean().sqrt()) > 1.0 and info.weighting == "none"


def test_the_error_falls_with_the_number_of_members() -> None:
    few, many = (float(run(ETKF, n)[0].square().mean().sqrt()) for n in (60, 3000))
    # 1 / sqrt(N) would be a factor of 7.
    assert few / many > 2.5


def test_an_infinite_radius_is_the_global_smoother() -> None:
    local, _, _ = run(lambda dynamics: LETKF(dynamics, radius=math.inf), 40)
    everywhere, _, _ = run(ETKF, 40)
    assert torch.allclose(local, everywhere, atol=1e-8)


@dataclass(frozen=True)
class Echo(ExactTransition):
    """x_k ~ N(0.5 x_{k-1} + 0.4 x_{k-3}, Q): it looks at three past states."""

    frames: int = 3

    def context(self, x: Tensor, time: float, past: Tensor | None = None) -> Context:
        earlier = torch.zeros_like(x)
        if past is not None and past.shape[x.ndim - 1] > 1:
            earlier = past.select(x.ndim - 1, 1)
        mean = 0.5 * x + 0.4 * earlier
        return Context(base=mean, condition=mean)


def test_the_past_goes_along_with_its_member() -> None:
    system = LinearGaussian.scalar(0.5, 1e-3)
    transition = Echo(system, steps=8)
    assert isinstance(transition, Historical)
    likelihood = Likelihood(Identity((1,)), GaussianNoise(2.0))
    flow = FlowDAS(transition, weights="global", threshold=1.0, guidance=None)
    start = torch.linspace(-3, 3, 64, dtype=torch.float64).reshape(1, 64, 1)
    state, paths = flow.init(start), start
    for k in range(1, 7):
        y = torch.tensor([[[0.3]]], dtype=torch.float64)
        state, info = flow.step(state, Observation(likelihood, y), float(k), rng=Streams(2, 1, 64).at(k))
        assert info.ancestors is not None
        # Rebuild every member's own history from the ancestors.
        paths = torch.cat([state.members, paths[:, info.ancestors[0]]], -1)
        expected = 0.5 * paths[..., 1] + 0.4 * (paths[..., 3] if k >= 3 else 0.0)
        assert float((paths[..., 0] - expected).abs().max()) < 6e-3
        assert torch.equal(state.past[..., 0], paths[..., 1:3])
    assert len(info.ancestors.unique()) < 64


@pytest.mark.parametrize("frames", [1, 3])
def test_a_step_over_several_model_steps_keeps_the_newest(frames: int) -> None:
    transition = Echo(LinearGaussian.scalar(0.5, 1e-6), steps=8, frames=frames)
    flow = FlowDAS(transition, guidance=None)
    state, _ = flow.step(flow.init(torch.ones(1, 4, 1)), None, 4.0, rng=Streams(2, 1, 4).at(0))
    assert state.past.shape == (1, 4, frames - 1, 1)
    if frames == 3:
        # 1, 0.5, 0.25, 0.125 + 0.4 and then 0.5 of that + 0.4 * 0.5.
        assert torch.allclose(state.past[0, 0, :, 0], torch.tensor([0.525, 0.25]), atol=1e-4)
        assert abs(float(state.members[0, 0, 0]) - 0.4625) < 1e-4


def test_known_states_before_the_start_become_the_past() -> None:
    transition = Echo(LinearGaussian.scalar(0.5, 1e-6), steps=8)
    space = transition.space
    known = space.to_dataset(
        torch.tensor([[[8.0], [4.0], [2.0]]]), dims=("experiment", "time"), coords={"time": [0.0, 1.0, 2.0]}
    )
    unseen = known.isel(time=slice(2)).assign_coords(time=[3.0, 4.0]).rename(x0="observation") * torch.nan
    found = run_window(FlowDAS(transition, guidance=None), unseen, likelihood=None, members=3, initial=known, start=2.0)
    # 0.5 * 2 + 0.4 * 8, then 0.5 * 4.2 + 0.4 * 4.
    assert found["x0"].values[0, 0] == pytest.approx([4.2, 3.7], abs=1e-4)
    single = run_window(
        FlowDAS(transition, guidance=None), unseen, likelihood=None, members=3, initial=known.isel(time=-1)
    )
    assert single["x0"].values[0, 0] == pytest.approx([1.0, 0.5], abs=1e-4)
