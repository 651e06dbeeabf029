"""Learned transitions that look at several states: they use the past, do without it, and say which they had."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.errors import UserError
from assimilate.filters.flowdas import FlowDAS
from assimilate.learning.checkpoint import load_checkpoint, save_checkpoint
from assimilate.learning.fit import FitSettings
from assimilate.learning.forecast import MeanForecast, PastForecast, context_channels
from assimilate.learning.networks import sized_network
from assimilate.learning.pretrained import find_pretrained, load_pretrained
from assimilate.learning.published import PublishedTransition
from assimilate.learning.samples import Standardisation, Trajectories
from assimilate.learning.transition import LearnedTransition, told, told_channels
from assimilate.learning.transition_fit import TransitionFit, _residuals, fit_transition, with_forecasts
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.transition import Historical, draw
from dynamics import Space, Streams

SETTINGS = TransitionFit(
    forecast_network={"width": 16},
    forecast=FitSettings(steps=300, batch=256, learning_rate=1e-2, ema=0.98, held_out_every=0),
    denoiser_network={"width": 32},
    denoiser=FitSettings(steps=300, batch=256, learning_rate=5e-3, ema=0.98, held_out_every=0, seed=1),
    stored=64,
    drop=0.5,
    informed=True,
)
# From one state alone the best forecast is the correlation at lag one times the state; the partial correlation at lag
# two, -0.95, is what it misses.
KNOWN, ALONE = 0.3, (0.09 / (1 - 0.95**2)) ** 0.5
LAG_ONE = 1.6 / 1.95


def oscillation() -> xr.Dataset:
    """x_k = 1.6 x_{k-1} - 0.95 x_{k-2} + 0.3 e: one state alone does not say where it goes."""
    rng = np.random.default_rng(0)
    x = np.zeros((64, 300), dtype=np.float64)
    for k in range(2, 300):
        x[:, k] = 1.6 * x[:, k - 1] - 0.95 * x[:, k - 2] + 0.3 * rng.standard_normal(64)
    values = x[:, 100:].astype(np.float32)
    return xr.Dataset({"a": (("experiment", "time"), values)}, {"time": np.arange(200) * 0.5})


@pytest.fixture(scope="module")
def learned() -> LearnedTransition:
    return fit_transition(oscillation(), replace(SETTINGS, frames=2))


def mean_forecast(frames: int, channels: int = 2, size: int = 6) -> MeanForecast:
    """A forecast whose network does something, on a small grid."""
    standard = Standardisation((1.0, 2.0)[:channels], (2.0, 4.0)[:channels], grid_dims=2)
    context = context_channels(frames, channels)
    network = sized_network("fno", {"width": 4, "modes": 2, "layers": 1}, channels, channels, context=context)
    rng = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data += 0.3 * torch.randn(value.shape, generator=rng, dtype=value.dtype)
    return MeanForecast(network, standard, standard, 3, frames).eval().requires_grad_(False)


def moving(frames: int, times: int = 9) -> tuple[Trajectories, MeanForecast]:
    """Trajectories of fields of two variables, and a forecast of them."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((2, 3, times, 6, 6)).astype(np.float32)
    dims = ("experiment", "time", "y", "x")
    ds = xr.Dataset({"a": (dims, values[0]), "b": (dims, values[1])}, {"time": np.arange(float(times))})
    return Trajectories.from_dataset(ds), mean_forecast(frames)


@pytest.mark.parametrize("name", ["lorenz63", "double-well"])
def test_files_without_a_past_give_what_they_gave(name):
    checkpoint, learned = load_checkpoint(find_pretrained(name)), load_pretrained(name)
    assert "frames" not in checkpoint.constants and learned.frames == 1
    x = learned.prior((2, 3), rng=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(checkpoint.constants["state"][key]) for key in ("mean", "std"))
    shift, size = (torch.tensor(checkpoint.constants["increment"][key]) for key in ("mean", "std"))
    unit = (x - mean) / std
    expected = x + (shift + size * checkpoint.networks["forecast"](unit.flatten(0, 1), None, None).reshape(x.shape))
    context = learned.context(x)
    assert torch.equal(context.base, expected) and torch.equal(learned.step(x, 0.0, rng=None), expected)
    assert torch.equal(context.condition, unit)
    # A past that is not looked at changes nothing.
    past = torch.full((2, 3, 4, *x.shape[2:]), 1e6)
    assert torch.equal(learned.context(x, 0.0, past).base, expected)


def test_two_states_say_more_than_one(learned):
    alone = fit_transition(oscillation(), replace(SETTINGS, denoiser=replace(SETTINGS.denoiser, steps=1)))
    # 12,800 training windows and 1,194 held-out ones, which know a standard deviation to 2 %.
    assert learned.frames == 2 and learned.path.scale == pytest.approx((KNOWN,), rel=0.1)
    assert alone.frames == 1 and alone.path.scale == pytest.approx((ALONE,), rel=0.1)


@pytest.mark.parametrize(("with_past", "spread", "tolerance"), [(True, KNOWN, 0.1), (False, ALONE, 0.15)])
def test_draws_with_and_without_a_past(learned, with_past, spread, tolerance):
    # States that lie on the attractor, where training was: x = 1, and 1.3 before it.
    x, past = torch.ones(4000, 1), torch.full((4000, 1, 1), 1.3)
    context = learned.context(x, 0.0, past if with_past else None)
    one = learned if with_past else replace(learned, steps=32)
    found = draw(one, x, 0.0, event_dims=1, rng=torch.Generator().manual_seed(0), context=context).x
    expected = 1.6 - 0.95 * 1.3 if with_past else LAG_ONE
    assert float(found.mean()) == pytest.approx(expected, abs=0.1)
    assert float(found.std()) == pytest.approx(spread, rel=tolerance)
    if not with_past:
        assert torch.equal(context.base, learned.step(x, 0.0, rng=None))


def test_what_is_unknown_is_flagged():
    forecast = mean_forecast(3)
    rng = torch.Generator().manual_seed(1)
    x, past = torch.randn(2, 2, 6, 6, generator=rng), torch.randn(2, 1, 2, 6, 6, generator=rng)
    condition = told(forecast, x, past, ahead=x + 1)
    assert condition.shape[1] == told_channels(3, 2, True) == 2 + 2 * 3 + 2
    encode = forecast.standardisation.encode
    assert torch.equal(condition[:, :2], encode(x)) and torch.equal(condition[:, 8:], encode(x + 1))
    assert torch.equal(condition[:, 2:4], encode(past[:, 0])) and bool((condition[:, 4] == 1).all())
    assert not bool(condition[:, 5:8].any())
    nothing = told(forecast, x, None)
    assert nothing.shape[1] == told_channels(3, 2, False) == 8 and not bool(nothing[:, 2:].any())
    # Saying that a state is unknown is the same as not giving it.
    both, known = torch.cat([past, 9 + past], 1), torch.tensor([[True, False], [True, False]])
    assert torch.equal(told(forecast, x, both, known), told(forecast, x, past))
    assert torch.equal(forecast(x, both, known), forecast(x, past))


def test_rows_and_leading_dims(learned):
    double = learned.to(dtype=torch.float64)
    rng = torch.Generator().manual_seed(2)
    x, past = torch.randn(2, 3, 1, generator=rng).double(), torch.randn(2, 3, 1, 1, generator=rng).double()
    whole = double.context(x, 0.0, past)
    row = double.context(x[1, 2], 0.0, past[1, 2])
    assert whole.base.shape == x.shape and whole.condition.shape == (2, 3, told_channels(2, 1, True))
    torch.testing.assert_close(whole.base[1, 2], row.base)
    torch.testing.assert_close(whole.condition[1, 2], row.condition)
    assert torch.equal(double.next_state(x, 0.0, past), whole.base)


def test_forecasts_made_beforehand_have_the_past_that_there_is():
    data, forecast = moving(3)
    both = with_forecasts(data, forecast).states
    states, ahead = both[:, :, :2], both[:, :, 2:]
    assert torch.equal(states, data.states) and not bool(ahead[:, 0].any())
    for k in range(1, 9):
        past = states[:, max(k - 3, 0) : k - 1].flip(1)
        torch.testing.assert_close(ahead[:, k], forecast(states[:, k - 1], past))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_batch_is_the_same_with_forecasts_made_beforehand(frames):
    data, forecast = moving(frames)
    settings = TransitionFit(frames=frames, drop=0.6, informed=True)
    path = Interpolant(power=1, scale=(0.5, 2.0), grid_dims=2)
    ready, fresh = (
        _residuals(source, forecast, path, settings)(40, torch.Generator().manual_seed(3))
        for source in (with_forecasts(data, forecast), data)
    )
    torch.testing.assert_close(ready.clean, fresh.clean)
    torch.testing.assert_close(ready.condition, fresh.condition)
    if frames == 3:
        # Flags of the second and the third state before: the third alone never.
        flags = fresh.condition[:, [4, 7], 0, 0]
        assert {tuple(row) for row in flags.tolist()} == {(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)}


def test_round_trip_through_a_file(learned, tmp_path):
    again = load_pretrained(save_checkpoint(learned.to_checkpoint(), tmp_path / "two.safetensors"))
    assert again.frames == 2 and again.record["forecast"] == learned.record["forecast"]
    x, past = torch.ones(4, 3, 1), torch.zeros(4, 3, 1, 1)
    for given in (past, None):
        ours, theirs = learned.context(x, 0.0, given), again.context(x, 0.0, given)
        assert torch.equal(ours.base, theirs.base) and torch.equal(ours.condition, theirs.condition)
    assert torch.equal(learned.step(x, 0.0, rng=Streams(1, 4, 3)), again.step(x, 0.0, rng=Streams(1, 4, 3)))


def test_a_filter_gives_each_member_its_own_past(learned):
    assert isinstance(learned, Historical) and isinstance(learned, PastForecast)
    before = torch.tensor([1.3, 0.3]).repeat_interleave(1000).reshape(1, 2000, 1, 1)
    method, x = FlowDAS.unguided(learned), torch.ones(1, 2000, 1)
    state = method.init(x)._replace(past=before)
    after, _ = method.step(state, None, learned.dt, rng=Streams(0, 1, 2000).at(1))
    means = after.members.reshape(2, 1000).mean(1)
    assert means.tolist() == pytest.approx([1.6 - 0.95 * 1.3, 1.6 - 0.95 * 0.3], abs=0.1)
    assert torch.equal(after.past[:, :, 0], x)


def test_the_published_path_is_given_the_past(learned):
    published = PublishedTransition(learned, noise=3.0, steps=200)
    assert isinstance(published, Historical) and published.frames == 2
    # 200 Euler-Maruyama steps leave an error of a few percent of the noise.
    x, past = torch.ones(2000, 1), torch.full((2000, 1, 1), 1.3)
    context = published.context(x, 0.0, past)
    assert torch.equal(context.base, x)
    found = draw(published, x, 0.0, event_dims=1, rng=torch.Generator().manual_seed(0), context=context).x
    assert float(found.mean()) == pytest.approx(1.6 - 0.95 * 1.3, abs=0.15)


def test_a_gaussian_around_a_forecast_from_several_states_is_refused(learned):
    with pytest.raises(UserError, match="frames = 1"):
        learned.gaussian()


def test_wrong_settings():
    for change, message in [({"frames": 0}, "frames is 0"), ({"drop": -0.1}, "drop is -0.1")]:
        with pytest.raises(ValueError, match=message):
            TransitionFit(**change)
    with pytest.raises(ValueError, match="'mlp' for"):
        fit_transition(oscillation(), replace(SETTINGS, architecture="unet"))


def test_a_field_with_gaps_in_its_mask():
    """Land stays empty, whatever the past."""
    data, forecast = moving(2)
    land = np.zeros((6, 6), dtype=bool)
    land[1, 2:4] = True
    space = Space(data.space.fields, data.space.coords, mask=np.broadcast_to(land, (2, 6, 6)).copy())
    settings = TransitionFit(frames=2, informed=True)
    path = Interpolant(power=1, scale=(0.5, 2.0), grid_dims=2)
    batch = _residuals(replace(data, space=space), forecast, path, settings)(5, torch.Generator().manual_seed(0))
    assert not bool(batch.clean[:, :, land].any()) and not bool(batch.weight[:, :, land].any())
