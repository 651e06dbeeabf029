"""Quality control, feedback and what innovations say, against closed forms of linear Gaussian systems."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from assimilate import ETKF, LETKF, RTS, BootstrapFilter, EnKF, KalmanFilter, run
from assimilate.diagnosis import desroziers, innovation_statistics
from assimilate.engine.flags import BACKGROUND, GROSS, MISSING, OUTSIDE, REJECTED, USED
from assimilate.engine.inspection import Inspection, Looked, chi_square, inspected_step
from assimilate.engine.network import rows_of_grid
from assimilate.errors import UserError
from assimilate.feedback import Feedback, to_ioda
from assimilate.filters.base import EnsembleFilter
from assimilate.filters.ensemble import EnsembleKalmanFilter
from assimilate.quality import QualityControl
from assimilate.schedule import Schedule
from dynamics.base import simulate
from dynamics.linear import LinearGaussian
from dynamics.lorenz import Lorenz96
from dynamics.random import Streams, normal
from observations.heavy_tails import StudentT
from observations.instruments import Instrument
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.poisson import Poisson
from observations.sampling import Identity, Mask
from observations.synthetic import observe
from observations.tables import read_table

MODEL = Lorenz96(size=8, noise_std=0.1)
LIKELIHOOD = Likelihood(Mask(MODEL.space, [0, 3, 5, 6]), GaussianNoise(0.5))


@pytest.fixture(scope="module")
def seen():
    truth = simulate(MODEL, steps=10, trajectories=2, seed=4, spinup=60)
    return observe(truth.isel(time=slice(1, None)), MODEL.space, LIKELIHOOD, seed=2)


SETTING = {"likelihood": LIKELIHOOD, "members": 20, "seed": 3, "start": 0.0}


class Guided(EnKF):
    """An EnKF with a step of its own: nothing is known of how it is made."""

    def step(self, state, observation, time, *, rng):
        return super().step(state, observation, time, rng=rng)


METHODS = [EnKF(MODEL), ETKF(MODEL, rotate=True, prior_inflation=1.05), LETKF(MODEL, radius=2.0), Guided(MODEL),
           BootstrapFilter(MODEL)]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_checks_that_reject_nothing_change_nothing(method, seen):
    plain = run(method, seen, **SETTING)
    checked = run(method, seen, **SETTING, quality=QualityControl(gross=(-1e3, 1e3), background=50.0))
    for name in plain.data_vars:
        np.testing.assert_array_equal(plain[name].values, checked[name].values)
    assert set(checked.data_vars) - set(plain.data_vars) == {"chi_square", "rejected"}
    assert float(checked["rejected"].sum()) == 0
    # An ensemble Kalman filter forecasts once, others have a second forecast beside them.
    assert (type(method).step is EnsembleKalmanFilter.step) == (not isinstance(method, Guided | BootstrapFilter))


@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: type(m).__name__)
def test_a_rejected_value_is_a_missing_value_and_keeps_its_flag(method, seen):
    wild = seen.copy(deep=True)
    wild["observation"][0, 2, 1] = 1e3
    wild["observation"][1, 4, 3] += 30.0
    gone = wild.copy(deep=True)
    gone["observation"][0, 2, 1] = np.nan
    gone["observation"][1, 4, 3] = np.nan
    feedback = Feedback()
    checked = run(method, wild, **SETTING, quality=QualityControl((-40, 60), 8.0), feedback=feedback)
    blank = run(method, gone, **SETTING)
    np.testing.assert_array_equal(checked["x"].values, blank["x"].values)
    table = feedback.table()
    flags = table["flag"].values.reshape(2, 10, 4)
    expected = np.full((2, 10, 4), USED)
    expected[0, 2, 1], expected[1, 4, 3] = GROSS, BACKGROUND
    np.testing.assert_array_equal(flags, expected)
    assert float(table["value"].max()) == 1e3
    np.testing.assert_array_equal(checked["rejected"].values, (expected > 0).sum(-1))


def test_feedback_is_the_background_and_analysis_at_the_observations(seen):
    feedback = Feedback()
    found = run(ETKF(MODEL), seen, **SETTING, feedback=feedback)
    table = feedback.table()
    assert table.sizes == {"experiment": 2, "location": 40}
    for column in ("background_mean", "analysis_mean", "analysis_std"):
        wanted = found[f"x_{column.removeprefix('analysis_')}"].values[..., [0, 3, 5, 6]].reshape(2, 40)
        np.testing.assert_allclose(table[column].values, wanted, atol=1e-5)
    np.testing.assert_array_equal(table["value"].values, seen["observation"].values.reshape(2, 40))
    np.testing.assert_array_equal(table["site"].values, np.tile([0, 3, 5, 6], 10))
    np.testing.assert_array_equal(table["time"].values, np.repeat(seen["time"].values, 4))
    assert (table["error"].values == 0.5).all() and (table["variable"].values == "x").all()
    np.testing.assert_array_equal(feedback.innovations()["chi_square"].values, found["chi_square"].values)


def test_rows_of_a_table_keep_what_became_of_them(tmp_path):
    rows = pd.DataFrame(
        {
            "time": [0.05, 0.06, 0.05, 0.11, 0.10, 9.0],
            "site": [0.0, 2.0, 3.5, 5.0, 1.0, 4.0],
            "value": [2.0, 1.0, np.nan, 70.0, 3.0, 2.0],
            "flag": [0, 3, 0, 0, 0, 0],
            "station": list("abcdef"),
        }
    )
    feedback = Feedback()
    run(
        ETKF(MODEL), Instrument("gauges", read_table(rows, error=1.0)), members=10, start=0.0,
        schedule=Schedule("window", times=[0.05, 0.1], length=0.05), feedback=feedback,
        quality={"gauges": QualityControl(gross=(-30, 30))},
    )  # fmt: skip
    table = feedback.table()
    flags = dict(zip(table["station"].values.tolist(), table["flag"].values.tolist(), strict=True))
    assert flags == {"a": USED, "b": REJECTED, "c": MISSING, "d": GROSS, "e": USED, "f": OUTSIDE}
    known = dict(zip(table["station"].values.tolist(), np.isfinite(table["background_mean"].values), strict=True))
    assert known == dict.fromkeys("abcde", True) | {"f": False}
    assert table["analysis_time"].values.tolist()[:5] == [0.05, 0.05, 0.05, 0.1, 0.1]
    table.to_netcdf(tmp_path / "feedback.nc")
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "feedback.nc"), table)
    groups = to_ioda(table)
    assert set(groups.children) == {"MetaData", "ObsValue", "ObsError", "hofx", "ombg", "oman", "EffectiveQC"}
    np.testing.assert_array_equal(groups["EffectiveQC"]["x"].values, table["flag"].values)
    np.testing.assert_allclose(groups["ombg"]["x"].values, table["value"].values - table["background_mean"].values)


def test_experiments_that_diverge_are_outside_and_the_others_keep_theirs(seen):
    class Breaks(EnKF):
        """Experiment 1 of the batch diverges at the fourth analysis."""

        def step(self, state, observation, time, *, rng):
            after, info = super().step(state, observation, time, rng=rng)
            if rng.rows[0] == 2 and time > 0.19:
                after.members[1] = torch.nan
            return after, info

    feedback, whole = Feedback(), Feedback()
    run(EnKF(MODEL), seen, **SETTING, feedback=whole)
    with pytest.warns(UserWarning, match="diverged"):
        run(Breaks(MODEL), seen, **SETTING, feedback=feedback)
    table, expected = feedback.table(), whole.table()
    np.testing.assert_array_equal(table["analysis_mean"].values[0], expected["analysis_mean"].values[0])
    flags = table["flag"].values.reshape(2, 10, 4)
    assert (flags[1, 3:] == OUTSIDE).all() and (flags[1, :3] == USED).all() and (flags[0] == USED).all()


def test_a_filter_without_a_background_has_none_unless_it_is_asked_to_forecast(seen):
    class Direct(EnsembleFilter):
        """Draws the analysis at once, as FlowDAS does."""

        name, exactness = "direct", "biased"

        def __init__(self, inner):
            self.inner, self.dynamics = inner, inner.dynamics

        def step(self, state, observation, time, *, rng):
            after, info = self.inner.step(state, observation, time, rng=rng)
            return after, info._replace(background=None)

    direct, asked = Feedback(), Feedback()
    run(Direct(EnKF(MODEL)), seen, **SETTING, feedback=direct)
    run(Direct(EnKF(MODEL)), seen, **SETTING, feedback=asked, quality=QualityControl(background=50.0))
    assert np.isnan(direct.table()["background_mean"]).all() and np.isfinite(direct.table()["analysis_mean"]).all()
    known = Feedback()
    run(EnKF(MODEL), seen, **SETTING, feedback=known)
    np.testing.assert_array_equal(asked.table()["background_mean"], known.table()["background_mean"])


def scalar_case(assumed, *, true=0.5, prior=1.0, experiments=2000, members=100):
    """One analysis of N(0, prior) seen directly, error `true`, assimilated with `assumed` (variances)."""
    system = LinearGaussian.scalar(1.0, 1e-6, prior_std=math.sqrt(prior))
    rng = Streams(11, experiments, 1)
    x = normal(rng, (experiments, 1, 1), dtype=torch.float64) * math.sqrt(prior)
    y = x + normal(rng, (experiments, 1, 1), dtype=torch.float64) * math.sqrt(true)
    ds = xr.Dataset({"y": (("experiment", "time", "v"), y.numpy())}, {"time": [1.0]})
    feedback = Feedback()
    likelihood = Likelihood(Identity(system.space), GaussianNoise(math.sqrt(assumed)))
    run(KalmanFilter(system), ds, likelihood=likelihood, members=members, start=0.0, seed=5, feedback=feedback,
        dtype=torch.float64)  # fmt: skip
    return feedback


def pooled(found, name):
    return float(found[name].mean())


def test_chi_square_of_an_exact_filter_is_one():
    feedback = scalar_case(0.5)
    # d^2 / (B + R) is chi-square with 1 degree of freedom: mean 1, variance 2; a variance and a mean from 100 members
    # add 2 to 3 %.
    error = 4 * math.sqrt(2 / 2000) + 0.03
    statistics = innovation_statistics(feedback.table())
    assert pooled(statistics, "chi_square") == pytest.approx(1.0, abs=error)
    assert float(feedback.innovations()["chi_square"].mean()) == pytest.approx(1.0, abs=error)
    assert pooled(statistics, "count") == 1
    # With half the variance it is (B + R_true) / (B + R_assumed).
    low = scalar_case(0.25)
    assert float(low.innovations()["chi_square"].mean()) == pytest.approx(1.5 / 1.25, abs=error * 1.2)


@pytest.mark.parametrize("count", [3, 9])
def test_the_full_chi_square_is_that_of_the_dense_matrices(count):
    rng = Streams(1, 2, count)
    members = normal(rng, (2, count, 1, 8), dtype=torch.float64)
    y = normal(Streams(2, 2, 1), (2, 1, 4), dtype=torch.float64)[:, 0]
    y[1, 2] = torch.nan
    weights = torch.softmax(normal(rng, (2, count), dtype=torch.float64), -1)
    for log_weights in (None, weights.log()):
        found = chi_square(LIKELIHOOD, y, members, log_weights)
        for e in range(2):
            here = ~torch.isnan(y[e])
            x = LIKELIHOOD.operator(members[e])[:, here]
            w = torch.full((count,), 1 / count, dtype=torch.float64) if log_weights is None else weights[e]
            mean = w @ x
            covariance = ((x - mean).mT * w) @ (x - mean) / (1 - w.square().sum())
            d = y[e][here] - mean
            total = covariance + 0.25 * torch.eye(len(d), dtype=torch.float64)
            expected = float(d @ torch.linalg.solve(total, d)) / len(d)
            assert float(found[e]) == pytest.approx(expected, rel=1e-10)


def test_desroziers_finds_r_where_b_is_right_and_iterating_does():
    # E[d_a d_b] = R_assumed (B + R_true) / (B + R_assumed), sampled from 2,000 products: 4 sqrt(2 / 2000) of it, and
    # means of 100 members add 1 to 2 %. The fixed point attracts by (B + R_true) / (1 + R)^2, 0.67 near it.
    assumed, error = 2.0, 4 * math.sqrt(2 / 2000) + 0.02
    gaps = []
    for _ in range(4):
        found = desroziers(scalar_case(assumed).table())
        estimate = pooled(found, "observation_variance")
        assert estimate == pytest.approx(assumed * 1.5 / (1.0 + assumed), rel=error)
        gaps.append(abs(estimate - 0.5))
        assumed = estimate
    assert gaps[0] > 0.3 and all(after < 0.85 * before for before, after in itertools.pairwise(gaps))
    right = desroziers(scalar_case(0.5).table())
    assert pooled(right, "observation_variance") == pytest.approx(0.5, rel=error)
    assert pooled(right, "background_variance") == pytest.approx(1.0, rel=error)
    assert pooled(right, "analysis_variance") == pytest.approx(1 / 3, rel=error)
    assert pooled(right, "assumed_background_variance") == pytest.approx(1.0, rel=0.03)


def test_statistics_are_kept_apart_as_asked(seen):
    half = [Instrument(f"i{k}", seen, LIKELIHOOD) for k in range(2)]
    feedback = Feedback()
    setting = {n: v for n, v in SETTING.items() if n != "likelihood"}
    run(ETKF(MODEL), half, **setting, feedback=feedback)
    table = feedback.table()
    both = innovation_statistics(table, by=("instrument", "analysis_time"))
    assert both.sizes == {"experiment": 2, "instrument": 2, "analysis_time": 10}
    assert (both["count"] == 4).all()
    one = innovation_statistics(table, by=())
    assert one["count"].values.tolist() == [80, 80]
    d = (table["value"] - table["background_mean"]).values
    np.testing.assert_allclose(one["departure_mean"].values, d.mean(-1), rtol=1e-6)
    with pytest.raises(UserError, match="no 'sensor' for each row"):
        desroziers(table, by=("sensor",))
    with pytest.raises(UserError, match="give the table of a Feedback"):
        desroziers(table.drop_vars("analysis_mean"))


@pytest.mark.parametrize("noise", [StudentT(5.0, 0.4), Poisson(gain=4.0), StudentT(1.5, 0.4)])
def test_other_laws_are_checked_with_their_own_variance(noise):
    likelihood = Likelihood(Mask(MODEL.space, [0, 1]), noise)
    method = BootstrapFilter(MODEL)
    members = normal(Streams(0, 1, 50), (1, 50, 1, 8), dtype=torch.float64) * 0.1 + 9.0
    y = torch.tensor([[[9.2, 18.0]]], dtype=torch.float64)
    observation = Observation(likelihood, y)
    rows = rows_of_grid(y[0].numpy(), likelihood, MODEL.space, 0.0, np.array(["a", "a"]))
    inspection = Inspection(QualityControl(background=4.0), None)
    looked = Looked(observation, rows, 0.0)
    state, _, compare = inspected_step(inspection, method, method.init(members), looked, 0.0, Streams(0, 1, 50))
    # Standard deviations: 0.52 (Student), sqrt(9 / 4) = 1.5 (Poisson), none (Student without a variance: no check).
    expected = [USED, USED] if getattr(noise, "degrees", 9) < 2 else [USED, BACKGROUND]
    assert compare().flags.tolist() == [expected]
    assert torch.isfinite(method.ensemble(state)[0]).all()


def test_what_cannot_be_is_said(seen):
    with pytest.raises(ValueError, match="lowest and the highest"):
        QualityControl(gross=(3, 1))
    with pytest.raises(ValueError, match="above 0"):
        QualityControl(background=0.0)
    with pytest.raises(UserError, match="no instrument 'gages'"):
        run(ETKF(MODEL), seen, **SETTING, quality={"gages": QualityControl(gross=(0, 1))})
    with pytest.raises(UserError, match="assimilates none"):
        run(ETKF(MODEL), seen, **(SETTING | {"likelihood": None}), feedback=Feedback())
    with pytest.raises(UserError, match="has no forecast"):
        run(RTS(LinearGaussian.ring(8)), seen, **SETTING, quality=QualityControl(background=3.0))
    with pytest.raises(ValueError, match="holds nothing"):
        Feedback().table()


def test_a_smoother_takes_gross_limits(seen):
    system = LinearGaussian.ring(8)
    seen = seen.assign_coords(time=np.arange(1.0, 11.0))
    wild = seen.copy(deep=True)
    wild["observation"][0, 2, 1] = 1e3
    blank = seen.where(wild["observation"] < 100)
    found = run(RTS(system), wild, **SETTING, quality=QualityControl(gross=(-100, 100)))
    xr.testing.assert_equal(found["x_mean"], run(RTS(system), blank, **SETTING)["x_mean"])
