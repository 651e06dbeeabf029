"""Learned transitions recover known systems; their pieces are consistent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.learning.checkpoint import load_checkpoint, save_checkpoint
from assimilate.learning.diagnose import one_step_errors
from assimilate.learning.fit import FitSettings
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.published import PublishedTransition
from assimilate.learning.samples import Simulation, Trajectories
from assimilate.learning.transition_fit import TransitionFit, fit_transition
from assimilate.posterior.transition import GenerativeTransition
from dynamics import Streams, TransitionDensity
from dynamics.check import check_dynamics
from dynamics.linear import LinearGaussian

SYSTEM = LinearGaussian(
    matrix=torch.tensor([[0.9, 0.2], [-0.2, 0.9]], dtype=torch.float64),
    noise_covariance=torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64),
    prior_mean=torch.zeros(2, dtype=torch.float64),
    prior_covariance=torch.eye(2, dtype=torch.float64),
)
SETTINGS = TransitionFit(
    simulation=Simulation(trajectories=200, states=101, spinup=20, seed=1),
    forecast_network={"width": 16},
    forecast=FitSettings(steps=400, batch=512, learning_rate=1e-2, ema=0.98, held_out_every=200),
    denoiser_network={"width": 32},
    denoiser=FitSettings(steps=600, batch=512, learning_rate=5e-3, ema=0.99, held_out_every=200, seed=1),
    stored=200,
)


@pytest.fixture(scope="module")
def learned():
    return fit_transition(SYSTEM, SETTINGS)


def test_a_linear_gaussian_system_is_recovered(learned):
    states = Trajectories.simulated(SYSTEM, trajectories=300, states=2, spinup=30, seed=9).states[:, 0]
    errors = one_step_errors(learned, SYSTEM, states, draws=300, rng=torch.Generator().manual_seed(0))
    # 20,000 pairs determine the mean to 0.5 sqrt(2 / 20,000) = 0.005; a short training adds the rest.
    assert float(errors.mean.max()) < 0.06
    assert bool(((errors.spread > 0.96) & (errors.spread < 1.04)).all())
    # The noise's correlation 0.1 / sqrt(0.06) = 0.41 is not in the path: the denoiser has learned it. Variances are
    # taken value by value, so that it needs a finer grid than the spread does.
    x = torch.zeros(20_000, 2)
    step = replace(learned, steps=40).step(x, 0.0, rng=torch.Generator().manual_seed(1))
    assert float(torch.corrcoef(step.T)[0, 1]) == pytest.approx(0.41, abs=0.06)


def test_it_is_a_dynamics_and_a_generative_transition(learned):
    # The checks ask for agreement to float64 round-off, so the networks must compute in it.
    double = learned.to(dtype=torch.float64)
    check_dynamics(double)
    check_dynamics(double.gaussian())
    assert isinstance(learned, GenerativeTransition)
    gaussian = learned.gaussian()
    assert isinstance(gaussian, TransitionDensity)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(learned.step(x, 0.0, rng=None), gaussian.step(x, 0.0, rng=None))


def test_the_gaussian_forecast_has_the_density_that_it_draws_from(learned):
    gaussian = learned.gaussian()
    x = torch.tensor([[0.5, -0.3]])
    mean = gaussian.step(x, 0.0, rng=None)
    drawn = gaussian.step(x.expand(40_000, 2), 0.0, rng=torch.Generator().manual_seed(0))
    std = torch.tensor(gaussian.std)
    assert torch.allclose(drawn.mean(0), mean[0], atol=5 * 0.6 / 200)
    assert torch.allclose(drawn.std(0), std, rtol=5 / (2 * 40_000) ** 0.5)
    expected = torch.distributions.Normal(mean, std).log_prob(drawn[:3]).sum(-1)
    assert torch.allclose(gaussian.log_prob(drawn[:3], x, 0.0), expected, atol=1e-5)
    moments = gaussian.moments(x, 0.0)
    assert torch.allclose(moments[1].diagonal(), std**2)


def test_round_trip_through_a_file(learned, tmp_path):
    file = save_checkpoint(learned.to_checkpoint(), tmp_path / "linear.safetensors")
    again = load_pretrained(file)
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    for one in (learned, again):
        assert one.path == learned.path and one.sampler == learned.sampler and one.steps == learned.steps
    a, b = (one.step(x, 0.0, rng=Streams(1, 4, 3)) for one in (learned, again))
    assert torch.equal(a, b)
    assert load_checkpoint(file).record["denoiser"]["settings"]["steps"] == 600
    double = again.to(dtype=torch.float64)
    assert torch.allclose(double.step(x.double(), 0.0, rng=None).float(), learned.step(x, 0.0, rng=None), atol=1e-5)


def test_model_coordinates_and_the_start_of_the_path(learned):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(learned.from_model(learned.to_model(x)), x, atol=1e-6)
    context = learned.context(x, 0.0)
    at_start = learned.predictor(context.base, torch.tensor(0.0), context)
    # At t = 0 nothing of the residual is seen: its mean is that of the residual, 0, and its variance the path's.
    assert float((at_start.mean - context.base).abs().max()) < 0.15
    assert torch.allclose(at_start.covariance.variance.sqrt().mean(0), learned.path.spread(x), rtol=0.1)
    at_end = learned.predictor(x, torch.tensor(1.0), context)
    assert torch.allclose(at_end.mean, x, atol=1e-5)
    per_row = learned.predictor(x, torch.full((6,), 0.4), context).mean
    assert torch.allclose(per_row, learned.predictor(x, torch.tensor(0.4), context).mean, atol=1e-6)


def test_the_published_path_carries_the_same_law(learned):
    # c = 3 is five times the transition's noise; 300 Euler-Maruyama steps leave an error of a few percent.
    published = PublishedTransition(learned, noise=3.0, steps=300)
    assert isinstance(published, GenerativeTransition)
    assert sum(published.path.scale) / 2 == pytest.approx(3.0)
    x = torch.tensor([0.5, -0.3]).expand(4000, 2).clone()
    rng = torch.Generator().manual_seed(0)
    ours, theirs = learned.step(x, 0.0, rng=rng), published.step(x, 0.0, rng=rng)
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.05)
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.1)


def test_a_field_of_ones_own_with_no_data_cells():
    # An AR(1) field of two variables on a grid with land: x' = 0.7 x + e, e ~ N(0, 0.5^2), in every sea cell.
    rng = np.random.default_rng(0)
    values = np.zeros((400, 2, 4, 6), dtype=np.float32)
    for k in range(1, 400):
        values[k] = 0.7 * values[k - 1] + 0.5 * rng.standard_normal((2, 4, 6))
    values[..., 1, 2:4] = np.nan
    dims = ("time", "y", "x")
    ds = xr.Dataset({"a": (dims, values[:, 0]), "b": (dims, values[:, 1])}, {"time": np.arange(400) * 2.0})
    settings = replace(
        SETTINGS,
        architecture="unet",
        forecast_network={"widths": [8]},
        forecast=FitSettings(steps=150, batch=16, learning_rate=1e-2, ema=0.95, held_out_every=0, held_out_batch=16),
        denoiser_network={"widths": [8]},
        denoiser=FitSettings(steps=60, batch=16, learning_rate=3e-3, ema=0.9, held_out_every=0, held_out_batch=16),
        patch=(4, 4),
        stored=16,
    )
    learned = fit_transition(ds, settings)
    assert learned.dt == 2.0 and learned.space.channels == ("a", "b")
    x = learned.prior((64,), rng=torch.Generator().manual_seed(0))
    forecast = learned.step(x, 0.0, rng=None)
    sea = torch.from_numpy(~learned.space.mask)
    assert not bool(forecast[:, ~sea].any()) and bool((x[:, ~sea] == 0).all())
    slope = float((forecast[:, sea] * x[:, sea]).sum() / x[:, sea].square().sum())
    assert slope == pytest.approx(0.7, abs=0.07)
    # Residuals of 40 held-out fields of 44 values a variable: 2 % sampling error, and what the forecast misses.
    assert learned.path.scale == pytest.approx((0.5, 0.5), rel=0.1)
    assert not bool(learned.step(x, 0.0, rng=torch.Generator().manual_seed(1))[:, ~sea].any())
