"""observe(): the right values at the right times, one stream per experiment and time, chunk by chunk."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

from dynamics import Lorenz63, Space, SpaceMismatch, florence_space, open_dataset, simulate
from observations import Arctan, GaussianNoise, Identity, Likelihood, Mask, observe, random_mask

SYSTEM = Lorenz63.flowdas()
TRUTH = simulate(SYSTEM, steps=40, trajectories=3, seed=0, spinup=20)
LIKELIHOOD = Likelihood(Arctan(SYSTEM.space, "x", scale=8.0), GaussianNoise(0.25))


def test_values_and_labels():
    seen = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1)
    assert seen.observation.dims == ("experiment", "time", "observation_value")
    error = seen.observation[..., 0] - np.arctan(TRUTH.x / 8)
    assert float(error.std()) == pytest.approx(0.25, abs=5 * 0.25 / math.sqrt(2 * error.size))
    assert "Arctan" in seen.observation.attrs["operator"] and "std=0.25" in seen.observation.attrs["noise"]
    assert seen.attrs["seed"] == 1 and seen.time.equals(TRUTH.time)


def test_chosen_times_see_the_same_noise():
    every = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1)
    some = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1, every=8)
    assert some.equals(every.isel(time=slice(None, None, 8)))
    # Times computed otherwise than by the simulator still meet its times.
    times = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1, times=[0.025 * k for k in (3, 7, 12)])
    assert times.equals(every.isel(time=[3, 7, 12]))
    with pytest.raises(SpaceMismatch, match=r"time 0\.03 is not a time of the truth"):
        observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1, times=[0.03])


def test_experiments_do_not_change_each_other():
    every = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1)
    first = observe(TRUTH.isel(experiment=slice(0, 2)), SYSTEM.space, LIKELIHOOD, seed=1)
    assert first.equals(every.isel(experiment=slice(0, 2)))
    single = observe(TRUTH.isel(experiment=0, drop=True), SYSTEM.space, LIKELIHOOD, seed=1)
    assert np.array_equal(single.observation, every.observation[0])


def test_several_instruments():
    pair = {"thermometer": LIKELIHOOD, "full": Likelihood(Identity(SYSTEM.space), GaussianNoise(1.0))}
    seen = observe(TRUTH, SYSTEM.space, pair, seed=1)
    assert set(seen.data_vars) == {"thermometer", "full"} and seen.full.sizes["full_value"] == 3
    alone = observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=1)
    assert np.array_equal(seen.thermometer, alone.observation)
    error = (seen.full.values - SYSTEM.space.to_tensor(TRUTH).numpy()).ravel()
    other = (seen.thermometer[..., 0] - np.arctan(TRUTH.x / 8)).values.ravel()
    # Two instruments do not share their errors.
    assert abs(np.corrcoef(error.reshape(-1, 3)[:, 0], other)[0, 1]) < 5 / math.sqrt(other.size)


def test_dask_goes_chunk_by_chunk(tmp_path, monkeypatch):
    truth = open_dataset("florence").isel(time=slice(0, 7))
    space = florence_space()
    likelihood = Likelihood(random_mask(space, 0.1, 3), GaussianNoise(0.05))
    whole = observe(truth.load(), space, likelihood, seed=2, every=2)
    sizes = []
    original = Space.to_tensor

    def spy(self, ds, **kwargs):
        sizes.append(ds.sizes["time"])
        return original(self, ds, **kwargs)

    monkeypatch.setattr(Space, "to_tensor", spy)
    lazy = observe(truth.chunk(time=3), space, likelihood, seed=2, every=2)
    assert sizes == [2, 1, 1]  # times 0, 2 | 4 | 6 of chunks 0-2, 3-5, 6
    assert lazy.identical(whole)
    seen = whole.observation
    assert seen.units == "LogOnePlus(scale=1.0) of mm" and seen.shape == (4, 1027)
    assert whole.observation_lat.units == "degrees_north"
    # At its place each gauge saw log(1 + mm) with an error of 0.05.
    cells = np.log1p(truth.precipitation.isel(time=[0, 2, 4, 6]).values.reshape(4, -1))
    error = seen.values - cells[:, likelihood.operator.index.numpy()]
    assert error.std() == pytest.approx(0.05, rel=5 / math.sqrt(2 * error.size))
    whole.to_netcdf(tmp_path / "obs.nc")
    xr.testing.assert_equal(xr.open_dataset(tmp_path / "obs.nc"), whole)


def test_no_data_is_not_observed():
    values = np.ones((2, 3, 4), dtype="f4")
    values[:, 0, 0] = np.nan
    truth = xr.Dataset({"t": (("time", "y", "x"), values)}, {"time": [0.0, 1.0]})
    space = Space.from_dataset(truth)
    seen = observe(truth, space, Likelihood(Identity(space), GaussianNoise(0.1)), seed=0)
    assert seen.observation.dims == ("time", "observation_0", "observation_1", "observation_2")
    assert np.array_equal(np.isnan(seen.observation.values[:, 0]), np.isnan(values))
    y = torch.from_numpy(seen.observation.values)
    x = space.to_tensor(truth)
    assert bool(torch.isfinite(Likelihood(Identity(space), GaussianNoise(0.1)).log_prob(y, x)).all())


def test_units_only_where_they_are_known():
    linear = Likelihood(Mask(SYSTEM.space, [0]), GaussianNoise(1.0))
    assert observe(TRUTH, SYSTEM.space, linear, seed=0).observation.units == "1"
    assert "units" not in observe(TRUTH, SYSTEM.space, LIKELIHOOD, seed=0).observation.attrs


def test_an_ensemble_is_no_truth():
    with pytest.raises(SpaceMismatch, match="expected \\(time\\) or \\(experiment, time\\)"):
        observe(TRUTH.rename(experiment="member"), SYSTEM.space, LIKELIHOOD, seed=0)
