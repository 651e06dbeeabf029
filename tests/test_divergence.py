"""Experiments that diverge: recorded by name, NaN from then on, and no matter to the others."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate.engine.divergence import outlast
from assimilate.errors import UserError
from assimilate.experiment import Experiment
from assimilate.filters.base import Diverged, DivergenceWarning, EnsembleFilter, FilterState, Info
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.runner import run, stream
from assimilate.variational.background import DenseBackground
from assimilate.variational.three_dimensional import ThreeDVar
from assimilate.verification.statistics import Scoring, diverged, evaluate, rank_histogram, scores, series, statistics
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz96
from dynamics.random import Streams, normal, uniform
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Identity, Mask

MODEL = Lorenz96()
LIKELIHOOD = Likelihood(Identity(MODEL.space), GaussianNoise(1.0))
TRUTH, OBSERVATIONS = Experiment(MODEL, LIKELIHOOD, steps=10, experiments=4, seed=1, spinup=100).simulate()
GOOD = [0, 1, 3]
FIRST = MODEL.space.to_tensor(TRUTH.isel(time=0))[:, None]
START = FIRST + torch.randn(4, 12, *FIRST.shape[2:], generator=torch.Generator().manual_seed(0))
BAD = START.clone()
BAD[2] *= 60.0  # RK4 with this step blows up from there
COMMON = {"likelihood": LIKELIHOOD, "members": 12, "seed": 3, "start": 0.0}
EPSILON = float(torch.finfo(torch.float32).eps)


def lost_run(method=None, **more):
    with pytest.warns(DivergenceWarning, match=r"experiment 2 diverged at time 0\.\d+ .*the other 3 go on"):
        return run(method or EnKF(MODEL), OBSERVATIONS, **COMMON, initial=BAD, **more)


def test_random_numbers_of_a_row_stay_when_others_are_left_out():
    whole, part = Streams(7, 4, 5).at(9), Streams(7, (0, 1, 3), 5).at(9)
    for draw in (normal, uniform):
        assert torch.equal(draw(whole, (4, 5, 11))[GOOD], draw(part, (3, 5, 11)))
        assert torch.equal(
            draw(whole, (4, 5, 11), dtype=torch.float64)[GOOD], draw(part, (3, 5, 11), dtype=torch.float64)
        )
    assert torch.equal(uniform(whole, (4,))[GOOD], uniform(part, (3,)))


@pytest.mark.parametrize(
    "method", [EnKF(MODEL), ETKF(MODEL, rotate=True), BootstrapFilter(MODEL)], ids=lambda m: m.name
)
def test_the_others_go_on_as_if_nothing_had_happened(method):
    well = run(method, OBSERVATIONS, **COMMON, initial=START)
    lost = lost_run(method)
    when = lost["diverged_at"].values
    assert list(np.isnan(when)) == [True, True, False, True]
    before = lost["time"].values < when[2]
    for name in ("x", "x_mean", "x_std", "ess", "log_evidence"):
        found, expected = (each[name].transpose("experiment", "time", ...) for each in (lost, well))
        # The same numbers; a batch of another size may be summed in another order, and Lorenz-96 doubles what differs
        # in about 8 steps: a few hundred roundings of values up to 20 (log evidence: 100), twice doubled.
        scale = 100.0 if name == "log_evidence" else 20.0
        np.testing.assert_allclose(found[GOOD], expected[GOOD], rtol=0, atol=1e3 * EPSILON * scale)
        assert np.isfinite(found[2][before]).all() and np.isnan(found[2][~before]).all()
    assert lost.attrs["divergence"].startswith(f"{method.name} diverged in 1 of 4 experiments: experiment 2 at time 0.")
    assert "diverged_at" not in well and "divergence" not in well.attrs


def test_one_experiment_is_recorded_too_and_nothing_is_computed_after():
    steps = []

    @dataclass(frozen=True)
    class Counted(EnKF):
        def step(self, state, observation, time, *, rng):
            steps.append(time)
            return super().step(state, observation, time, rng=rng)

    alone = OBSERVATIONS.isel(experiment=2, drop=True)
    with pytest.warns(DivergenceWarning, match="none is left"):
        result = run(Counted(MODEL), alone, **COMMON, initial=BAD[2:3])
    assert result["diverged_at"].dims == () and float(result["diverged_at"]) == steps[-1] <= 0.1
    late = result.sel(time=slice(steps[-1], None))
    for name in ("x", "x_mean", "x_std", "ess", "log_evidence"):
        assert np.isnan(late[name]).all()
    assert result.sizes["time"] == 10


def test_a_run_may_raise_instead():
    with pytest.raises((Diverged, torch.linalg.LinAlgError)):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, initial=BAD, on_divergence="raise")
    with pytest.raises(Diverged) as caught:
        run(BootstrapFilter(MODEL), OBSERVATIONS, **COMMON, initial=BAD, on_divergence="raise")
    assert caught.value.experiments == (2,)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.experiments == (2,)
    with pytest.raises(UserError, match="expected 'record' or 'raise'"):
        run(EnKF(MODEL), OBSERVATIONS, **COMMON, on_divergence="ignore")


def test_stream_goes_on_with_the_same_numbers():
    whole = lost_run()
    live = stream(EnKF(MODEL), **COMMON, initial=BAD)
    with pytest.warns(DivergenceWarning):
        parts = [live.send(OBSERVATIONS.isel(time=slice(a, b))) for a, b in ((0, 2), (2, 3), (3, 10))]
    for name in ("x", "x_mean", "ess"):
        joined = xr.concat([p[name] for p in parts], "time").transpose(*whole[name].dims)
        np.testing.assert_array_equal(joined, whole[name])
    np.testing.assert_array_equal(parts[-1]["diverged_at"], whole["diverged_at"])
    assert parts[-1].attrs["divergence"] == whole.attrs["divergence"]


def test_dates_are_recorded_as_dates():
    dates = np.datetime64("2021-03-01", "ns") + np.arange(1, 11) * np.timedelta64(72, "m")  # 0.05 days
    dated = OBSERVATIONS.assign_coords(time=dates)
    settings = {**COMMON, "start": np.datetime64("2021-03-01", "ns"), "time_unit": "D"}
    with pytest.warns(DivergenceWarning):
        result = run(EnKF(MODEL), dated, **settings, initial=BAD)
    when = result["diverged_at"]
    assert when.dtype == dated["time"].dtype and list(when.isnull().values) == [True, True, False, True]
    assert when.values[2] in dates
    assert str(when.values[2])[:16] in result.attrs["divergence"]


# ------------------------------------------------------------------------------------------------ who is lost


@dataclass(frozen=True)
class Silent(EnsembleFilter):
    """A filter of somebody's that returns NaN and says nothing, or says it without numbers."""

    dynamics: Lorenz96
    says: bool = False
    name = "silent"
    exactness = "biased"

    def step(self, state, observation, time, *, rng):
        members = state.members + 1.0
        wrong = state.members.flatten(2).amax((1, 2)) > 100
        if self.says and bool(wrong.any()):
            raise Diverged(self.name, time, state.time, "somewhere")
        members[wrong] = torch.nan
        info = Info(None, members.new_zeros(len(members)), members.new_ones(len(members)))
        return FilterState(members, state.log_weights, time), info


@pytest.mark.parametrize("says", [False, True])
def test_filters_that_do_not_tell_who_diverged(says):
    start = BAD.clone()
    start[0] *= 100.0
    with pytest.warns(DivergenceWarning, match="experiments 0, 2 diverged"):
        result = run(Silent(MODEL, says), OBSERVATIONS, **COMMON, initial=start)
    assert list(result["diverged_at"].isnull().values) == [False, True, False, True]


def test_collapsed_weights_are_one_experiments_own():
    # A particle filter that cannot be right in one experiment: its observations are infinitely far in float32.
    far = OBSERVATIONS.copy(deep=True)
    far["observation"][3, 4:] = 1e30
    with pytest.warns(DivergenceWarning, match="experiment 3 diverged at time 0.25"):
        result = run(BootstrapFilter(MODEL), far, **COMMON, initial=START)
    assert list(result["diverged_at"].isnull().values) == [True, True, True, False]


def test_the_rows_that_can_go_on_are_found():
    class Failure(torch.linalg.LinAlgError):
        pass

    def step(rows):
        if {1, 4} & set(rows):
            raise Failure("linalg.cholesky: (Batch element 1): no")
        return rows

    found, lost, error = outlast(step, 6)
    assert found == (0, 2, 3, 5) and lost == (1, 4) and isinstance(error, Failure)
    assert outlast(lambda rows: rows, 3) == ((0, 1, 2), (), None)

    def together(rows):
        if len(rows) > 1:
            raise Failure("only together")
        return rows

    with pytest.raises(Failure, match="only together"):
        outlast(together, 3)


# ------------------------------------------------------------------------------------------------ scores


def test_scores_are_those_of_the_others():
    lost = lost_run()
    others = lost.isel(experiment=GOOD).drop_vars("diverged_at")
    found = evaluate(lost, TRUTH, space=MODEL.space)
    expected = evaluate(others, TRUTH.isel(experiment=GOOD), space=MODEL.space)
    assert found.pop("diverged") == 1.0 and "diverged" not in expected
    assert found == pytest.approx(expected, rel=1e-12)
    pooled = statistics(lost, TRUTH, space=MODEL.space)
    rest = statistics(others, TRUTH.isel(experiment=GOOD), space=MODEL.space)
    xr.testing.assert_allclose(series(pooled), series(rest))
    xr.testing.assert_allclose(rank_histogram(pooled), rank_histogram(rest))


def test_recorded_and_far_off_experiments_are_counted_together():
    lost = lost_run()
    lost["x_mean"][1] += 50.0
    pooled = statistics(lost, TRUTH, space=MODEL.space)
    scoring = Scoring(diverged=5.0)
    assert diverged(pooled) == [2] and diverged(pooled, scoring) == [1, 2]
    assert scores(pooled, scoring)["diverged"] == 2.0
    assert scores(pooled, scoring)["rmse_time"] < 5.0
    # Where all that are left are above the limit the method is that bad: none but the recorded one has diverged.
    assert diverged(pooled, Scoring(diverged=1e-6)) == [2]


def test_nothing_is_scored_where_all_are_lost_and_other_nan_is_an_error():
    with pytest.warns(DivergenceWarning):
        gone = run(EnKF(MODEL), OBSERVATIONS, **COMMON, initial=BAD[2:3].expand(4, -1, -1, -1))
    assert scores(statistics(gone, TRUTH, space=MODEL.space)) == {"diverged": 4.0}
    hidden = run(EnKF(MODEL), OBSERVATIONS, **COMMON, initial=START)
    hidden["x_mean"][0, 3] = np.nan
    with pytest.raises(ValueError):
        statistics(hidden, TRUTH, space=MODEL.space)


def test_a_result_in_a_file_says_so_too(tmp_path):
    held = lost_run(keep=4)
    stored = lost_run(keep=4, out=tmp_path / "a.nc")
    xr.testing.assert_equal(stored.load(), held)
    assert stored.attrs["divergence"] == held.attrs["divergence"]


def test_an_experiment_whose_minimisation_fails_does_not_stop_the_others():
    # 1e25 squared is no float32: the misfit of experiment 0 is infinite.
    ring = LinearGaussian.ring(6)
    likelihood = Likelihood(Mask(ring.space, [0, 2, 3]), GaussianNoise(0.5))
    values = np.random.default_rng(0).normal(0.0, 5.0, (4, 3))
    both = xr.Dataset(
        {"y": (("experiment", "time", "value"), np.stack([1e25 * values, values]))}, {"time": np.arange(1.0, 5.0)}
    )
    method = ThreeDVar(ring, background=DenseBackground.prior(ring))
    with pytest.warns(UserWarning, match="experiment 0 diverged.*misfit"):
        result = run(method, both, likelihood=likelihood, members=5, seed=1)
    assert np.isfinite(result["x"].isel(experiment=1)).all() and np.isnan(result["x"].isel(experiment=0)).all()
