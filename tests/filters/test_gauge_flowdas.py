"""FlowDAS from a first guess: better than kriging, honest about its error, and each row by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from assimilate.baselines.field_law import LawFit
from assimilate.baselines.motion import MotionFit
from assimilate.baselines.optimal_interpolation import OptimalInterpolation
from assimilate.filters.gauge_flowdas import GaugeFlowDAS
from assimilate.learning.checkpoint import load_checkpoint, save_checkpoint
from assimilate.learning.field import field_transition
from assimilate.learning.pretrained import load_pretrained
from dynamics.radar import RainStorms
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import random_mask

STORMS = RainStorms(ny=60, nx=51)
LIKELIHOOD = Likelihood(random_mask(STORMS.space, 0.04, 5), GaussianNoise(0.05))
DENSE = Likelihood(random_mask(STORMS.space, 0.1, 5), GaussianNoise(0.05))


@pytest.fixture(scope="module")
def rain():
    """The shipped transition on a small grid, with quick searches for the motion and the law."""
    shipped = load_pretrained("rain-hourly")
    law = LawFit(powers=(1.0,), gauges=100)
    guess = replace(shipped.guess, motion=MotionFit(gauges=40, starts=1, steps=3), law=law)
    return replace(shipped, space=STORMS.space, guess=guess)


@pytest.fixture(scope="module")
def truth():
    """Four storms of two hours, `(storm, hour, 1, rows, columns)`."""
    return STORMS.storms((4,), 2, rng=torch.Generator().manual_seed(31))


def run(filter_, y, members=8, likelihood=LIKELIHOOD):
    """Members after two hours, `(E, N, 1, rows, columns)`, and the state."""
    count = len(y)
    state = filter_.init(torch.zeros(count, members, *STORMS.space.event_shape))
    for hour in range(2):
        observation = Observation(likelihood, y[:, hour][:, None])
        state, info = filter_.step(state, observation, float(hour), rng=Streams(7, count, members).at(hour))
        assert info.weighting == "none"
    return state


def test_gauges_are_assimilated_better_than_by_optimal_interpolation(rain, truth):
    y = DENSE.sample(truth, rng=torch.Generator().manual_seed(1))
    state = run(GaugeFlowDAS.gauges(rain), y, likelihood=DENSE)
    # So many gauges need no help from those of the hour before.
    assert bool(torch.isnan(state.motion).all())
    ours = (state.members.mean(1) - truth[:, 1]).square().mean((1, 2, 3))
    kriging = []
    for row in range(4):
        seen = [Observation(DENSE, y[row, hour][None, None]) for hour in range(2)]
        fitted = OptimalInterpolation.fit(seen, STORMS.space)
        kriging.append(
            (fitted.estimate(seen[1], 1.0).mean.reshape(truth[row, 1].shape) - truth[row, 1]).square().mean()
        )
    # Pooled: of six storms one is dry but for a few cells, where a ratio says nothing.
    assert float((ours.sum() / torch.stack(kriging).sum()).sqrt()) < 0.95
    spread = (state.members.var(1).mean() * 9 / 8 / ours.mean()).sqrt()
    assert 0.7 < float(spread) < 1.4
    assert float(state.members.min()) >= 0


def test_the_state_remembers_two_hours_and_forgets_after_a_gap(rain, truth):
    y = LIKELIHOOD.sample(truth[:2], rng=torch.Generator().manual_seed(1))
    quick = GaugeFlowDAS.gauges(rain, start=0.25)
    state = run(quick, y, members=2)
    assert state.seen.shape == (2, 2, 60, 51)
    assert int((~torch.isnan(state.seen[0, 0])).sum()) == LIKELIHOOD.operator.index.numel()
    assert bool(torch.isfinite(state.motion).all())
    later, _ = quick.step(state, Observation(LIKELIHOOD, y[:, 1][:, None]), 3.0, rng=Streams(7, 2, 2).at(3))
    assert later.seen.shape[1] == 1 and bool(torch.isnan(later.motion).all())
    dry, info = quick.step(state, None, 2.0, rng=Streams(7, 2, 2).at(2))
    assert dry.seen.shape[1] == 0 and info.weighting is None


def test_a_row_does_not_change_when_there_are_others(rain, truth):
    y = LIKELIHOOD.sample(truth[:2], rng=torch.Generator().manual_seed(1))
    quick = GaugeFlowDAS.gauges(rain, start=0.25)
    both, one = run(quick, y, members=2), run(quick, y[:1], members=2)
    torch.testing.assert_close(both.members[:1], one.members, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_holds_the_first_guess(rain, tmp_path):
    again = field_transition(load_checkpoint(save_checkpoint(rain.to_checkpoint(), tmp_path / "rain.safetensors")))
    assert again.guess is not None and again.guess.settings == rain.guess.settings
    blocks, told = torch.ones(1, 1, 20, 17), torch.ones(1, 8, 20, 17)
    a, b = (t.guess.network(blocks, torch.zeros(1), told) for t in (again, rain))
    assert torch.equal(a, b)


def test_what_it_needs_is_said(rain):
    with pytest.raises(ValueError, match="with a first guess"):
        GaugeFlowDAS(replace(rain, guess=None))
    with pytest.raises(ValueError, match="lowest level"):
        GaugeFlowDAS(rain, start=0.01)
