"""Regression forecasts recover known means, use the past where it tells something, and survive a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.learning.fit import FitSettings
from assimilate.learning.forecast import MeanForecast, PastForecast, RegressionForecast, context_channels
from assimilate.learning.forecast_fit import ForecastFit, fit_forecast, residual_std, split_window
from assimilate.learning.networks import sized_network
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.recipes import train
from assimilate.learning.samples import Simulation, Standardisation, Trajectories
from dynamics import LinearGaussian, Space
from dynamics.check import check_dynamics

SYSTEM = LinearGaussian(
    matrix=torch.tensor([[0.9, 0.2], [-0.2, 0.9]], dtype=torch.float64),
    noise_covariance=torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64),
    prior_mean=torch.zeros(2, dtype=torch.float64),
    prior_covariance=torch.eye(2, dtype=torch.float64),
)
TRAINING = FitSettings(steps=300, batch=256, learning_rate=1e-2, ema=0.98, held_out_every=0)
SETTINGS = ForecastFit(
    simulation=Simulation(trajectories=200, states=51, spinup=20, seed=1),
    architecture="mlp",
    network={"width": 16},
    training=TRAINING,
    stored=100,
)


@pytest.fixture(scope="module")
def learned() -> RegressionForecast:
    return fit_forecast(SYSTEM, SETTINGS)


def oscillation() -> xr.Dataset:
    """x_k = 1.6 x_{k-1} - 0.95 x_{k-2} + 0.3 e: one state alone does not say where it goes."""
    rng = np.random.default_rng(0)
    x = np.zeros((64, 300), dtype=np.float64)
    for k in range(2, 300):
        x[:, k] = 1.6 * x[:, k - 1] - 0.95 * x[:, k - 2] + 0.3 * rng.standard_normal(64)
    values = x[:, 100:].astype(np.float32)
    return xr.Dataset({"a": (("experiment", "time"), values)}, {"time": np.arange(200) * 0.5})


@pytest.fixture(scope="module")
def remembering() -> RegressionForecast:
    settings = replace(SETTINGS, frames=3, drop=0.5, training=replace(TRAINING, steps=500))
    return fit_forecast(oscillation(), settings)


def test_the_mean_of_a_linear_system_and_the_size_of_its_noise(learned):
    x = Trajectories.simulated(SYSTEM, trajectories=300, states=2, spinup=30, seed=9).states[:, 0]
    error = learned.step(x, 0.0, rng=None) - SYSTEM.step(x, 0.0, rng=None)
    # 9,000 pairs determine the mean to 0.5 sqrt(2 / 9,000) = 0.007; a short training adds the rest.
    assert float(error.square().mean().sqrt()) < 0.05
    # Held-out pairs are 1,000: their standard deviation is known to 2.2 %.
    assert learned.std == pytest.approx((0.3**0.5, 0.2**0.5), rel=0.09)
    assert learned.frames == 1 and learned.dt == SYSTEM.dt


def test_it_is_a_dynamics_without_noise(learned):
    check_dynamics(learned.to(dtype=torch.float64))
    assert isinstance(learned, PastForecast)
    x = learned.prior((2, 3), rng=torch.Generator().manual_seed(0))
    drawn = learned.step(x, 0.0, rng=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, learned.step(x, 0.0, rng=None))


def test_the_past_is_used_and_may_be_missing(remembering):
    held_out = Trajectories.from_dataset(oscillation()).split(0.1)[1]
    found, _ = held_out.windows(4000, 4, torch.Generator().manual_seed(3))
    x, past, after = split_window(found)
    assert torch.equal(past[:, 0], found[:, 1]) and torch.equal(past[:, 1], found[:, 0])
    errors = [
        float((remembering.next_state(x, 0.0, past[:, :known]) - after).square().mean().sqrt()) for known in (0, 1, 2)
    ]
    # Two states say all there is to know. From one alone the best forecast is the correlation at lag one times the
    # state, which leaves a variance of 0.09 / (1 - 0.95^2): the partial correlation at lag two is -0.95.
    alone = (0.09 / (1 - 0.95**2)) ** 0.5
    assert errors[1] == pytest.approx(0.3, rel=0.1) and errors[2] == pytest.approx(0.3, rel=0.1)
    assert errors[0] == pytest.approx(alone, rel=0.1)
    assert remembering.std == pytest.approx((0.3,), rel=0.1)
    more = torch.cat([past, torch.full_like(past, 1e6)], 1)
    assert torch.equal(remembering.next_state(x, 0.0, more), remembering.next_state(x, 0.0, past))


def test_unknown_states_are_flagged():
    standard = Standardisation((1.0, 2.0), (2.0, 4.0), grid_dims=2)
    network = sized_network("fno", {"width": 4, "modes": 2, "layers": 1}, 2, 2, context=context_channels(3, 2))
    forecast = MeanForecast(network, standard, standard, 3, frames=3)
    past = torch.randn(5, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    _, context = forecast.encoded(past[:, 0], past)
    assert context.shape == (5, 6, 4, 4)
    assert torch.equal(context[:, :2], standard.encode(past[:, 0]))
    assert bool((context[:, 2] == 1).all()) and not bool(context[:, 3:].any())
    # A new network gives 0: the forecast is the state and the mean increment.
    result = forecast(past[:, 0], past)
    assert torch.allclose(result, past[:, 0] + torch.tensor([1.0, 2.0])[:, None, None])


def test_leading_dims_and_rows(remembering):
    double = remembering.to(dtype=torch.float64)
    rng = torch.Generator().manual_seed(4)
    x, past = torch.randn(2, 3, 1, generator=rng), torch.randn(2, 3, 2, 1, generator=rng)
    x, past = x.double(), past.double()
    whole = double.next_state(x, 0.0, past)
    assert whole.shape == x.shape
    assert torch.allclose(double.next_state(x[1, 2], 0.0, past[1, 2]), whole[1, 2], atol=1e-12)


def test_round_trip_through_a_file(remembering, tmp_path):
    from assimilate.learning.checkpoint import save_checkpoint

    again = load_pretrained(save_checkpoint(remembering.to_checkpoint(), tmp_path / "f.safetensors"))
    assert isinstance(again, RegressionForecast)
    assert (again.frames, again.dt, again.std) == (3, 0.5, remembering.std)
    x, past = torch.ones(2, 1), torch.ones(2, 2, 1)
    assert torch.equal(again.next_state(x, 0.0, past), remembering.next_state(x, 0.0, past))
    assert again.record["forecast"]["settings"]["steps"] == 500
    assert torch.equal(again.states, remembering.states)


def test_a_periodic_field_with_an_operator_on_its_modes():
    """Diffusion on a ring of rings: x' = K x + noise, K a multiplier of Fourier modes."""
    k = torch.fft.fftfreq(8, 1 / 8)
    multiplier = 1 / (1 + 0.3 * (k[:, None] ** 2 + k[None] ** 2))
    rng = torch.Generator().manual_seed(0)
    states = [torch.zeros(32, 1, 8, 8)]
    for _ in range(60):
        mean = torch.fft.ifft2(multiplier * torch.fft.fft2(states[-1])).real
        states.append(mean + 0.5 * torch.randn(mean.shape, generator=rng))
    dims = ("experiment", "time", "y", "x")
    ds = xr.Dataset({"a": (dims, torch.stack(states[20:], 1)[:, :, 0].numpy())}, {"time": np.arange(41.0)})
    settings = replace(
        SETTINGS,
        architecture="fno",
        network={"width": 6, "modes": 4, "layers": 1},
        training=FitSettings(steps=120, batch=16, learning_rate=1e-2, ema=0.95, held_out_every=0),
    )
    learned = fit_forecast(ds, settings)
    assert learned.space == Space.from_dataset(ds)
    # The forecast that knows K leaves the noise; persistence leaves sqrt(0.25 + |(1 - K) x|^2) = 0.7.
    assert learned.std == pytest.approx((0.5,), rel=0.05)


def test_no_data_cells_stay_empty():
    values = np.random.default_rng(0).standard_normal((60, 4, 6)).astype(np.float32)
    values[:, 1, 2:4] = np.nan
    ds = xr.Dataset({"a": (("time", "y", "x"), values)}, {"time": np.arange(60.0)})
    settings = replace(
        SETTINGS,
        architecture="unet",
        network={"widths": [4]},
        training=FitSettings(steps=2, batch=4, held_out_every=0),
        patch=(4, 4),
        frames=2,
    )
    learned = fit_forecast(ds, settings)
    x = learned.prior((3,), rng=torch.Generator().manual_seed(0)) + 1.0
    land = torch.from_numpy(learned.space.mask.copy())
    assert not bool(learned.step(x, 0.0, rng=None)[:, land].any())
    data = Trajectories.from_dataset(ds)
    # White noise of variance 1: the residual of persistence has a standard deviation near sqrt(2) on the sea alone.
    assert residual_std(learned.forecast, data)[0] == pytest.approx(2**0.5, rel=0.1)


def test_the_recipe_trains_resumes_and_writes(tmp_path):
    table = {
        "architecture": "mlp", "network": {"width": 8}, "stored": 8, "frames": 2,
        "simulation": {"trajectories": 20, "states": 21, "spinup": 5},
        "training": {"steps": 20, "batch": 64, "held_out_batch": 64},
    }
    file = train("forecast", SYSTEM, table, file=tmp_path / "f.safetensors", resume=tmp_path / "resume")
    assert (tmp_path / "resume" / "forecast.safetensors").exists()
    assert load_pretrained(file).frames == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"frames": 0}, "frames is 0"), ({"drop": 1.5}, "drop is 1.5"), ({"architecture": "fno"}, "'mlp' for")],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        fit_forecast(SYSTEM, replace(SETTINGS, **change))
