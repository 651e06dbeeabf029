"""The learned transition of fields: the shipped rain prior is right about storms it has not seen, and about itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from assimilate.baselines.optimal_interpolation import OptimalInterpolation
from assimilate.filters.flowdas import FlowDAS
from assimilate.learning.checkpoint import load_checkpoint, save_checkpoint
from assimilate.learning.field import field_transition
from assimilate.learning.field_fit import FieldFit, fit_field
from assimilate.learning.fit import FitSettings
from assimilate.learning.pretrained import load_pretrained
from dynamics.radar import RainStorms
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import random_mask

STORMS = RainStorms(ny=48, nx=40)


@pytest.fixture(scope="module")
def rain():
    """The shipped transition on a small grid: one network serves any."""
    return replace(load_pretrained("rain-hourly"), space=STORMS.space)


def test_the_denoiser_knows_its_own_error_on_held_out_storms(rain):
    # 24 storms of 48 x 40 cells; storms differ, so the ratio is known to about 15 %.
    fields = STORMS.storms((24,), 1, rng=torch.Generator().manual_seed(77))[:, 0]
    for ratio in (0.1, 0.4, 1.5):
        z = torch.randn(fields.shape, generator=torch.Generator().manual_seed(1))
        none = torch.zeros(24, 2, 48, 40)
        with torch.no_grad():
            clean = rain.denoiser(fields + ratio * z, torch.tensor(ratio), none)
        squared = (fields - clean.mean).square().mean()
        assert float(squared) < 0.6 * min(ratio**2, float(fields.var()))
        assert 0.7 < float(squared / clean.covariance.std.square().mean()) < 1.4


def test_gauges_are_assimilated_better_than_by_optimal_interpolation(rain):
    likelihood = Likelihood(random_mask(STORMS.space, 0.1, 5), GaussianNoise(0.05))
    truth = STORMS.storms((6, 1), 1, rng=Streams(31, 6, 1))[:, :, 0]
    y = likelihood.sample(truth, rng=Streams(32, 6, 1))
    flow = FlowDAS.gauges(rain)
    state = flow.init(STORMS.prior((6, 16), rng=Streams(33, 6, 16)))
    after, info = flow.step(state, Observation(likelihood, y), 0.0, rng=Streams(34, 6, 16))
    assert info.weighting == "none" and float(after.members.min()) >= 0
    ours = (after.members.mean(1) - truth[:, 0]).square().mean()
    linear = 0.0
    for row in range(6):
        observation = Observation(likelihood, y[row : row + 1])
        fitted = OptimalInterpolation.fit([observation], STORMS.space)
        linear += float((fitted.estimate(observation, 0.0).mean - truth[row]).square().mean()) / 6
    assert float(ours) < linear
    # Members differ as much as they err, within a factor that six storms can tell.
    spread = (after.members.var(1).mean() * 17 / 16 / ours).sqrt()
    assert 0.6 < float(spread) < 1.6


def test_a_step_and_a_prior_are_rain(rain):
    small = replace(rain, levels=rain.levels[-4:])
    x = STORMS.prior((1, 3), rng=Streams(0, 1, 3))
    for drawn in (small.step(x, 0.0, rng=Streams(1, 1, 3)), small.prior((1, 3), rng=Streams(2, 1, 3))):
        assert drawn.shape == x.shape and bool(torch.isfinite(drawn).all()) and float(drawn.min()) >= 0
    # Rows are their own: the first two members do not change when there are three.
    fewer = small.step(x[:, :2], 0.0, rng=Streams(1, 1, 2))
    torch.testing.assert_close(small.step(x, 0.0, rng=Streams(1, 1, 3))[:, :2], fewer, rtol=1e-4, atol=1e-4)


def test_checkpoint_round_trip(rain, tmp_path):
    again = field_transition(load_checkpoint(save_checkpoint(rain.to_checkpoint(), tmp_path / "rain.safetensors")))
    noisy = torch.randn(2, 1, 48, 40, generator=torch.Generator().manual_seed(0))
    none = torch.zeros(2, 2, 48, 40)
    with torch.no_grad():
        first, second = (d.denoiser(noisy, torch.tensor(0.5), none).mean for d in (rain, again))
    assert torch.equal(first, second)
    assert again.levels == pytest.approx(rain.levels) and again.floor == 0.0


def test_a_short_training_learns_the_field_and_its_own_error():
    settings = FieldFit(
        storms=96,
        patch=32,
        network={"widths": (8, 16)},
        training=FitSettings(steps=150, batch=16, learning_rate=3e-3, warmup=20, ema=0.98, held_out_batch=16),
    )
    trained = fit_field(RainStorms(ny=40, nx=40), settings)
    fields = RainStorms(ny=40, nx=40).storms((32,), 1, rng=torch.Generator().manual_seed(5))[:, 0]
    noisy = fields + 0.5 * torch.randn(fields.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        clean = trained.denoiser(noisy, torch.tensor(0.5), torch.zeros(32, 2, 40, 40))
    squared = float((fields - clean.mean).square().mean())
    # F = 0 is the answer of a white Gaussian prior, s^2 r^2 / (s^2 + r^2); neighbours tell far more.
    variance = trained.denoiser.denoiser.sigma_data ** 2
    assert squared < 0.5 * variance * 0.25 / (variance + 0.25)
    assert 0.4 < squared / float(clean.covariance.std.square().mean()) < 2.5
    assert trained.denoiser.correlation.shape == (12, 64)
