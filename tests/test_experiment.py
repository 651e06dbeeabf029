"""`run`, `stream` and `Experiment`: same numbers whichever way, whatever the batch, the chunks or the interruption."""

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.engine.results import Slice, keep_members, moment_space, to_dataset
from assimilate.errors import UserError
from assimilate.experiment import Experiment, child_seed
from assimilate.filters.ensemble import EnKF
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.particle import BootstrapFilter
from assimilate.runner import run, stream
from assimilate.smoothers.rts import RTS
from assimilate.verification.statistics import evaluate
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz63, Lorenz96
from dynamics.random import Streams
from dynamics.space import Field, LogOnePlus, Space
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, Mask, Select

MODEL = Lorenz63.flowdas()
LIKELIHOOD = Likelihood(Select(MODEL.space, [0]), GaussianNoise(1.0))
TWIN = Experiment(MODEL, LIKELIHOOD, steps=12, experiments=3, seed=5)
TRUTH, OBSERVATIONS = TWIN.simulate()
COMMON = {"likelihood": LIKELIHOOD, "members": 20, "seed": 3}


def linear():
    matrix = torch.tensor([[0.9, 0.3], [-0.2, 0.8]], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    return LinearGaussian(matrix, 0.2 * identity, torch.zeros(2, dtype=torch.float64), identity, dt=1.0)


def test_stream_gives_the_numbers_of_run():
    whole = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)
    live = stream(BootstrapFilter(MODEL), **COMMON)
    parts = [live.send(OBSERVATIONS.isel(time=slice(k, k + 1))) for k in range(4)]
    parts.append(live.send(OBSERVATIONS.isel(time=slice(4, 12))))
    for name in ("x", "z_mean", "ess", "log_evidence"):
        joined = xr.concat([p[name] for p in parts], "time")
        np.testing.assert_array_equal(joined.transpose(*whole[name].dims), whole[name])


def test_one_time_without_a_time_dim_can_be_sent():
    live = stream(EnKF(MODEL), **COMMON)
    analysis = live.send(OBSERVATIONS.isel(time=0))
    assert analysis.sizes["time"] == 1 and analysis.sizes["member"] == 20


def test_a_dataset_with_only_a_time_is_a_forecast():
    live = stream(EnKF(MODEL), **COMMON, initial=TRUTH.isel(time=0))
    later = xr.Dataset(coords={"time": [0.25], "experiment": [0, 1, 2]})
    analysis = live.send(later)
    np.testing.assert_array_equal(analysis["x_mean"], analysis["x_background_mean"])
    assert float(analysis["log_evidence"].sum()) == 0.0


def test_time_must_go_on():
    live = stream(EnKF(MODEL), **COMMON)
    live.send(OBSERVATIONS.isel(time=3))
    with pytest.raises(UserError, match="came after"):
        live.send(OBSERVATIONS.isel(time=2))
    swapped = OBSERVATIONS.isel(time=[0, 2, 1])
    with pytest.raises(UserError, match="time is not increasing"):
        run(EnKF(MODEL), swapped, **COMMON)


def test_experiments_do_not_see_each_other():
    alone = run(BootstrapFilter(MODEL), OBSERVATIONS.isel(experiment=slice(0, 1)), **COMMON)
    together = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)
    np.testing.assert_allclose(alone["x"][0], together["x"][0], rtol=1e-5, atol=1e-5)


def test_members_keep_their_numbers_when_others_are_added():
    few = run(EnKF(MODEL), OBSERVATIONS, likelihood=None, members=4, seed=3)
    many = run(EnKF(MODEL), OBSERVATIONS, likelihood=None, members=9, seed=3)
    np.testing.assert_allclose(few["x"], many["x"].isel(member=slice(0, 4)), rtol=1e-5, atol=1e-5)


def test_seeds_decide_everything():
    again = run(EnKF(MODEL), OBSERVATIONS, **COMMON)
    xr.testing.assert_equal(run(EnKF(MODEL), OBSERVATIONS, **COMMON), again)
    other = run(EnKF(MODEL), OBSERVATIONS, **{**COMMON, "seed": 4})
    assert not np.allclose(other["x_mean"], again["x_mean"])
    assert child_seed(5, "truth") != child_seed(5, "methods")


def test_a_run_goes_on_from_where_it_stopped():
    whole = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)
    assert "log_weights" in whole
    first = run(BootstrapFilter(MODEL), OBSERVATIONS.isel(time=slice(0, 5)), **COMMON)
    rest = run(
        BootstrapFilter(MODEL), OBSERVATIONS.isel(time=slice(5, None)), **COMMON, initial=first.isel(time=-1), first=5
    )
    # The weights pass through a normalisation once more: equal to round-off of their logarithms.
    np.testing.assert_allclose(rest["x"], whole["x"].isel(time=slice(5, None)), rtol=1e-4, atol=1e-4)


def test_dask_backed_observations_are_read_one_chunk_at_a_time():
    read = []

    def note(block, block_info=None):
        read.append(block_info[None]["array-location"])
        return block

    chunked = OBSERVATIONS.chunk(time=5)
    array = chunked["observation"].data.map_blocks(note, dtype=np.float32, meta=np.empty((0,) * 3, np.float32))
    chunked = chunked.assign(observation=(chunked["observation"].dims, array))
    seen = []
    lazy = run(EnKF(MODEL), chunked, **COMMON, progress=lambda k: seen.append((k, len(read))))
    np.testing.assert_array_equal(lazy["x"], run(EnKF(MODEL), OBSERVATIONS, **COMMON)["x"])
    # When analysis k is done, only the chunks up to its own have been read.
    assert seen == [(k, k // 5 + 1) for k in range(12)]


def test_results_can_go_to_a_file_as_they_come(tmp_path):
    held = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)
    stored = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON, out=tmp_path / "long.nc")
    assert stored.chunks
    for name in ("x", "y_std", "ess", "log_weights"):
        np.testing.assert_array_equal(stored[name].transpose(*held[name].dims), held[name])


def test_dates_count_in_the_given_unit():
    model = Lorenz96(dt=0.05)  # 0.05 days are 72 minutes
    likelihood = Likelihood(Identity(model.space), GaussianNoise(1.0))
    dates = np.datetime64("2020-01-01T00", "ns") + np.arange(4) * np.timedelta64(72, "m")
    values = xr.Dataset({"y": (("time", "channel", "site"), np.zeros((4, 1, 40)))}, {"time": dates})
    numbers = values.assign_coords(time=0.05 * np.arange(4))
    by_date = run(EnKF(model), values, likelihood=likelihood, members=5, seed=1, time_unit="D")
    by_number = run(EnKF(model), numbers, likelihood=likelihood, members=5, seed=1)
    np.testing.assert_array_equal(by_date["x"], by_number["x"])
    assert by_date["time"].dtype.kind == "M"


def test_missing_values_and_missing_times_are_forecasts():
    gone = OBSERVATIONS.where(OBSERVATIONS["time"] < 0.1)
    analysis = run(EnKF(MODEL), gone, **COMMON)
    late = analysis.sel(time=slice(0.11, None))
    np.testing.assert_array_equal(late["x_mean"], late["x_background_mean"])


def test_run_is_the_filter_stepped_by_hand():
    analysis = run(EnKF(MODEL), OBSERVATIONS, **COMMON, initial=TRUTH.isel(time=0), initial_std=0.5)
    streams = Streams(3, 3, 20)
    from assimilate.engine.cycle import INITIAL_STEP
    from dynamics.random import normal
    from observations.likelihood import Observation

    start = MODEL.space.to_tensor(TRUTH.isel(time=0))[:, None] + 0.5 * normal(streams.at(INITIAL_STEP), (3, 20, 3))
    state = EnKF(MODEL).init(start, 0.0)
    y = torch.from_numpy(OBSERVATIONS["observation"].values)
    for k, time in enumerate(OBSERVATIONS["time"].values):
        seen = Observation(LIKELIHOOD, y[:, k].reshape(3, 1, 1))
        state, _ = EnKF(MODEL).step(state, seen, float(time), rng=streams.at(k))
    np.testing.assert_array_equal(analysis["y"].isel(time=-1), state.members[..., 1])


def test_the_kalman_filter_through_datasets_is_calibrated_on_a_linear_system():
    model = linear()
    likelihood = Likelihood(Identity(model.space), GaussianNoise(0.5))
    twin = Experiment(model, likelihood, steps=50, experiments=40, seed=2)
    truth, observations = twin.simulate()
    analysis = twin.run(KalmanFilter(model), truth, observations, members=64)
    scores = evaluate(analysis, truth, space=model.space)
    # 40 x 50 x 2 errors, correlated over a few steps: the ratio's standard error is about 2 %.
    assert scores["spread_skill"] == pytest.approx(1.0, abs=0.08)
    assert scores["rmse"] < 0.5


def test_a_smoother_runs_over_the_same_window_and_is_no_worse():
    model = linear()
    likelihood = Likelihood(Identity(model.space), GaussianNoise(0.5))
    twin = Experiment(model, likelihood, steps=30, experiments=20, seed=3)
    truth, observations = twin.simulate()
    filtered = evaluate(twin.run(KalmanFilter(model), truth, observations, members=32), truth, space=model.space)
    smoothed = evaluate(twin.run(RTS(model), truth, observations, members=32), truth, space=model.space)
    assert smoothed["rmse"] < filtered["rmse"]
    # The evidence of the window is one number, whichever way it is computed; it is stored as sums in float32.
    assert smoothed["log_evidence"] == pytest.approx(filtered["log_evidence"], rel=1e-4)
    with pytest.raises(UserError, match="whole window"):
        next(stream(RTS(model), likelihood=likelihood).send(observations.isel(time=0)))


def test_stored_members_may_be_fewer_than_ran():
    all_of_them = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON)
    some = run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON, keep=6)
    assert some.sizes["member"] == 6 and "log_weights" not in some
    np.testing.assert_array_equal(some["x_mean"], all_of_them["x_mean"])


def test_kept_members_follow_the_weights():
    members = torch.arange(8.0).reshape(1, 8, 1)
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0, 0, 0, 0]]).log()
    kept, rest = keep_members(members, weights, 4)
    assert kept.flatten().tolist() == [0, 0, 1, 1] and rest is None


def test_moments_are_in_the_units_that_are_assimilated():
    space = Space((Field("rain", "mm", transform=LogOnePlus(1.0)),))
    assert moment_space(space, "mean").fields[0].units == "log(1 + mm)"
    members = torch.log1p(torch.tensor([0.0, 3.0])).reshape(1, 2, 1)
    one = Slice(members.mean(1), members.std(1), members)
    times = xr.DataArray([0.0], dims="time", name="time")
    result = to_dataset(space, [one], times, experiments=False)
    np.testing.assert_allclose(result["rain"].values.ravel(), [0.0, 3.0], atol=1e-6)
    assert float(result["rain_mean"][0]) == pytest.approx(np.log(4.0) / 2)


def test_networks_may_change_with_time():
    space = Lorenz96().space

    def network(now):
        cells = np.flatnonzero(np.isfinite(now["y"].values))
        return Likelihood(Mask(space, torch.from_numpy(cells)), GaussianNoise(1.0))

    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 40))
    fixed = xr.Dataset({"y": (("time", "cell"), values)}, {"time": [0.0, 0.05, 0.1]})
    everything = Likelihood(Mask(space, torch.arange(40)), GaussianNoise(1.0))
    by_rule = run(EnKF(Lorenz96()), fixed, likelihood=network, members=10, seed=1)
    direct = run(EnKF(Lorenz96()), fixed, likelihood=everything, members=10, seed=1)
    np.testing.assert_array_equal(by_rule["x"], direct["x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "cuda:7"}, "device 'cuda:7' is not there"),
        ({"likelihood": Likelihood(Identity(MODEL.space), GaussianNoise(1.0))}, "has 1 values"),
        ({"initial": TRUTH.isel(time=3)}, "before the start"),
        ({"initial_std": 1.0}, "initial state"),
        ({"initial": torch.zeros(2, 20, 3)}, "rows"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        run(EnKF(MODEL), OBSERVATIONS, **{**COMMON, **change})
    assert "\n" not in str(caught.value)


def test_an_infinite_value_is_refused():
    with pytest.raises(UserError, match="infinite"):
        run(EnKF(MODEL), OBSERVATIONS.where(OBSERVATIONS["time"] < 0.1, np.inf), **COMMON)


def test_something_that_is_no_method_is_refused():
    with pytest.raises(UserError, match="is no method"):
        run(MODEL, OBSERVATIONS, **COMMON)
