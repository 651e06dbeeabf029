"""Tables, several instruments and irregular times through `run`: the same numbers in every way to give them."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from assimilate import ETKF, LETKF, BootstrapFilter, EnKF, KalmanFilter, run, stream
from assimilate.engine.clock import Clock
from assimilate.engine.network import gather
from assimilate.errors import UserError
from assimilate.filters.check import check_filter
from assimilate.filters.substepped import Substepped
from assimilate.quality import QualityControl
from assimilate.schedule import Schedule
from dynamics.base import simulate
from dynamics.errors import CapabilityError
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz96
from dynamics.radar import RainStorms
from observations.instruments import Instrument
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, Mask
from observations.synthetic import observe
from observations.tables import read_table

MODEL = Lorenz96(size=12)
SITES = np.array([1, 4, 7, 10])


@pytest.fixture(scope="module")
def truth():
    return simulate(MODEL, steps=12, trajectories=2, seed=4, spinup=60)


@pytest.fixture(scope="module")
def gridded(truth):
    likelihood = Likelihood(Mask(MODEL.space, SITES), GaussianNoise(0.5))
    return observe(truth.isel(time=slice(1, None)), MODEL.space, likelihood, seed=2), likelihood


def table_of(gridded, **more):
    """The same values as a table: one row for each time and site, in an order of its own."""
    observed = gridded[0]["observation"]
    stacked = observed.stack(location=("time", "observation_value"))
    order = np.random.default_rng(0).permutation(stacked.sizes["location"])
    columns = {
        "value": (("experiment", "location"), stacked.transpose("experiment", ...).values[:, order]),
        "error": ("location", np.full(order.size, 0.5)),
    }
    times, sites = np.repeat(observed["time"].values, 4)[order], np.tile(SITES.astype(float), 12)[order]
    return read_table(xr.Dataset(columns, {"time": ("location", times), "site": ("location", sites), **more}))


SETTING = {"members": 10, "seed": 3, "start": 0.0}


@pytest.mark.parametrize("method", [ETKF(MODEL), LETKF(MODEL, radius=3.0), BootstrapFilter(MODEL)])
def test_a_table_is_the_grid_that_it_was_made_from(gridded, method):
    by_grid = run(method, gridded[0], likelihood=gridded[1], **SETTING)
    by_table = run(method, table_of(gridded), **SETTING)
    # The rows of a time are in another order: sums round differently, and chaos makes more of it.
    for name in ("x_mean", "log_evidence"):
        np.testing.assert_allclose(by_table[name].values, by_grid[name].values, atol=2e-3)


def test_two_instruments_are_one_with_all_values(truth):
    """Half of the cells each: joined they are the instrument that sees all, in the order of the parts."""
    halves = [np.arange(0, 12, 2), np.arange(1, 12, 2)]
    seen = [
        observe(
            truth.isel(time=slice(1, None)), MODEL.space, Likelihood(Mask(MODEL.space, half), GaussianNoise(s)), seed=k
        )
        for k, (half, s) in enumerate(zip(halves, (0.5, 1.0), strict=True))
    ]
    parts = [
        Instrument(f"half {k}", ds, Likelihood(Mask(MODEL.space, half), GaussianNoise(s)))
        for k, (ds, half, s) in enumerate(zip(seen, halves, (0.5, 1.0), strict=True))
    ]
    both = xr.Dataset(
        {"y": (("experiment", "time", "v"), np.concatenate([s["observation"].values for s in seen], -1))},
        {"time": seen[0]["time"]},
    )
    std = torch.tensor([0.5] * 6 + [1.0] * 6)
    whole = Likelihood(Mask(MODEL.space, np.concatenate(halves)), GaussianNoise(std))
    for method in (EnKF(MODEL), LETKF(MODEL, radius=3.0)):
        joint, single = run(method, parts, **SETTING), run(method, both, likelihood=whole, **SETTING)
        np.testing.assert_array_equal(joint["x"].values, single["x"].values)


def test_an_instrument_that_is_missing_is_as_if_it_were_not_there(gridded, truth):
    rest = Likelihood(Identity(MODEL.space), GaussianNoise(2.0))
    fields = observe(truth.isel(time=slice(1, None, 4)), MODEL.space, rest, seed=9)
    gaps = gridded[0].where(gridded[0]["time"] > 0.31)
    late = gridded[0].isel(time=gridded[0]["time"].values > 0.31)
    for observed in (gaps, late):
        both = [Instrument("sites", observed, gridded[1]), Instrument("fields", fields, rest)]
        found = run(ETKF(MODEL), both, schedule="exact", **SETTING)
        first = found.sel(time=fields["time"].values[0])
        alone = run(ETKF(MODEL), fields, likelihood=rest, **SETTING).isel(time=0)
        xr.testing.assert_allclose(first["x_mean"], alone["x_mean"])
    # As NaN its times stay in the result, as forecasts; where it is not in the Dataset they are not.
    assert run(ETKF(MODEL), [Instrument("a", gaps, gridded[1])], **SETTING).sizes["time"] == 12


def test_the_kalman_filter_takes_a_table(gridded):
    system = LinearGaussian.ring(12)
    table = read_table(
        pd.DataFrame({"time": [1.0, 1.0, 3.0], "site": [0.0, 3.5, 7.0], "value": [1.0, 0.5, -1.0]}), error=0.2
    )
    found = run(KalmanFilter(system), table, members=4, start=0.0, dtype=torch.float64)
    prior = system.marginal_moments(1)[1].dense().double()
    weights = torch.zeros(2, 12, dtype=torch.float64)
    weights[0, 0], weights[1, 3], weights[1, 4] = 1.0, 0.5, 0.5
    law = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), weights @ prior @ weights.mT + 0.04 * torch.eye(2, dtype=torch.float64)
    )
    expected = law.log_prob(torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert float(found["log_evidence"][0]) == pytest.approx(float(expected), rel=1e-9)


def test_schedules_assign_times():
    clock = Clock()
    times = np.array([0.02, 0.06, 0.11, 0.24, 0.26])

    def assigned(schedule, start=0.0):
        return Schedule.of(schedule).assign([times[:2], times[2:]], clock, start, 0.1)

    exact = assigned("exact")
    assert exact.times.tolist() == times.tolist() and [i.tolist() for i in exact.numbers] == [[0, 1], [2, 3, 4]]
    nearest = assigned("nearest")
    np.testing.assert_allclose(nearest.times, [0.0, 0.1, 0.2, 0.3])
    assert [i.tolist() for i in nearest.numbers] == [[0, 1], [1, 2, 3]]
    # What lies more than half a step before the start is in no analysis.
    assert assigned("nearest", 0.1).numbers[0].tolist() == [-1, 0]
    centred = assigned(Schedule("window", every=0.1))
    np.testing.assert_allclose(centred.times, [0.0, 0.1, 0.2, 0.3])
    assert [i.tolist() for i in centred.numbers] == [[0, 1], [1, 2, 3]]
    ending = assigned(Schedule("window", every=0.1, ending=True))
    np.testing.assert_allclose(ending.times, [0.1, 0.2, 0.3])
    assert [i.tolist() for i in ending.numbers] == [[0, 0], [1, 2, 2]]
    short = assigned(Schedule("window", times=[0.1, 0.25], length=0.03))
    assert [i.tolist() for i in short.numbers] == [[-1, -1], [0, 1, 1]]
    # The later edge belongs to a window, the earlier one does not.
    edge = Schedule("window", every=0.1, ending=True).assign([np.array([0.1, 0.2])], clock, 0.0, 0.1)
    assert edge.numbers[0].tolist() == [0, 1]
    with pytest.raises(UserError, match="falls to an analysis"):
        assigned(Schedule("window", times=[5.0], length=0.1))
    for wrong in ({"rule": "later"}, {"rule": "window"}, {"every": 1.0}, {"rule": "window", "times": [1.0]}):
        with pytest.raises(ValueError, match=r"expected one of|needs|belong"):
            Schedule(**wrong)


def test_dates_and_numbers_are_one_schedule(gridded):
    table = table_of(gridded).isel(experiment=0)
    dates = np.datetime64("2024-01-01T06:00", "ns") + np.round(table["time"].values * 3600e9).astype("timedelta64[ns]")
    dated = table.assign_coords(time=("location", dates))
    moved = table.assign_coords(time=("location", table["time"].values + 0.013))
    late = dated.assign_coords(time=("location", dates + np.timedelta64(46_800, "ms")))
    setting = {"members": 10, "seed": 3, "schedule": "nearest"}
    numbers = run(ETKF(MODEL), moved, start=0.0, **setting)
    found = run(ETKF(MODEL), late, start=np.datetime64("2024-01-01T06:00"), **setting)
    np.testing.assert_allclose(found["x"].values, numbers["x"].values, atol=1e-4)
    assert found["time"].values[0] == np.datetime64("2024-01-01T06:03")
    with pytest.raises(UserError, match="mixed"):
        run(ETKF(MODEL), late, start=0.0, **setting)


def test_two_times_of_a_grid_in_one_window_are_two_observations():
    system = LinearGaussian.scalar(1.0, 1e-4, prior_std=1.0)
    likelihood = Likelihood(Identity(system.space), GaussianNoise(1.0))
    ds = xr.Dataset({"y": (("time", "v"), [[1.0], [3.0]])}, {"time": [1.0, 2.0]})
    found = run(
        KalmanFilter(system), ds, likelihood=likelihood, members=4, start=0.0, dtype=torch.float64,
        schedule=Schedule("window", every=2.0, ending=True),
    )  # fmt: skip
    # Two observations of error 1 and a prior of variance 1 (and 2e-8 of noise): the mean is a third of their sum.
    law = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64) + 1.0
    )
    expected = float(law.log_prob(torch.tensor([1.0, 3.0], dtype=torch.float64)))
    assert found.sizes["time"] == 1
    assert float(found["log_evidence"][0]) == pytest.approx(expected, abs=1e-6)


def test_substeps_change_nothing_at_whole_steps_and_are_exact_between(gridded):
    whole = run(EnKF(MODEL), gridded[0], likelihood=gridded[1], **SETTING)
    divided = run(EnKF(MODEL), gridded[0], likelihood=gridded[1], schedule="substep", **SETTING)
    np.testing.assert_array_equal(whole["x"].values, divided["x"].values)
    # A Kalman filter of an Ornstein-Uhlenbeck process seen at 0.3 and 1.0 has the evidence of its exact law.
    system = LinearGaussian.scalar(0.6, 0.5, prior_std=2.0)
    rows = pd.DataFrame({"time": [0.3, 1.0], "variable": "x0", "value": [0.7, -0.4]})
    found = run(
        KalmanFilter(system), read_table(rows, error=0.1), members=4, start=0.0, schedule="substep", dtype=torch.float64
    )
    rate, still = -np.log(0.6), 0.25 / (1 - 0.36)
    variance = [still + (4.0 - still) * np.exp(-2 * rate * t) for t in (0.3, 1.0)]
    across = variance[0] * np.exp(-rate * 0.7)
    covariance = torch.tensor([[variance[0] + 0.01, across], [across, variance[1] + 0.01]], dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)
    expected = float(law.log_prob(torch.tensor([0.7, -0.4], dtype=torch.float64)))
    assert float(found["log_evidence"].sum()) == pytest.approx(expected, rel=1e-6)


def test_a_filter_with_substeps_is_a_filter():
    check_filter(lambda dynamics: Substepped(EnKF(dynamics)), members=200)
    with pytest.raises(CapabilityError, match="cannot be divided"):
        table = read_table(pd.DataFrame({"time": [0.5], "y": [4.0], "x": [4.0], "value": [1.0]}), error=1.0)
        run(EnKF(RainStorms(8, 8)), table, members=3, start=0.0, schedule="substep")


def test_what_does_not_go_together_is_said(gridded):
    table = table_of(gridded)
    with pytest.raises(UserError, match="bring their own likelihoods"):
        run(ETKF(MODEL), table, likelihood=gridded[1], **SETTING)
    with pytest.raises(UserError, match="need likelihood="):
        run(ETKF(MODEL), gridded[0], **SETTING)
    with pytest.raises(UserError, match="names of their own"):
        gather([Instrument("a", table), Instrument("a", table)], MODEL.space)
    with pytest.raises(UserError, match="experiments; expected one number"):
        more = table.isel(experiment=[0, 1, 1])
        gather([Instrument("a", table), Instrument("b", more)], MODEL.space)
    with pytest.raises(UserError, match=r"no 'site'.*names of the grid's coordinates"):
        gather([Instrument("a", table.drop_vars("site"))], MODEL.space)


def test_a_forecast_without_assimilation_has_the_same_times(gridded):
    table = table_of(gridded)
    free = run(ETKF(MODEL), table, likelihood=None, **SETTING)
    assert free.sizes["time"] == 12 and float(abs(free["log_evidence"]).max()) == 0


def test_a_stream_of_tables_is_the_run_of_all(gridded):
    table = table_of(gridded)
    whole = run(LETKF(MODEL, radius=3.0), table, **SETTING)
    analyses = stream(LETKF(MODEL, radius=3.0), **SETTING)
    for k, time in enumerate(whole["time"].values):
        now = table.isel(location=np.flatnonzero(table["time"].values == time))
        np.testing.assert_array_equal(analyses.send(now)["x"].values[..., 0, :], whole["x"].values[..., k, :])


def test_a_killed_run_of_tables_goes_on(gridded, tmp_path):
    table, setting = table_of(gridded), SETTING | {"quality": QualityControl(background=3.0)}
    whole = run(ETKF(MODEL), table, out=tmp_path / "a.nc", **setting).load()

    def stopped(index):
        if index == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ETKF(MODEL), table, out=tmp_path / "b.nc", checkpoint_every=2, progress=stopped, **setting)
    again = run(ETKF(MODEL), table, out=tmp_path / "b.nc", resume=True, **setting).load()
    xr.testing.assert_equal(whole, again)
    assert "rejected" in again and "chi_square" in again
    with pytest.raises(UserError, match="quality"):
        run(ETKF(MODEL), table, out=tmp_path / "b.nc", resume=True, **SETTING)
