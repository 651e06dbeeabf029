"""Scores: against numbers worked out by hand, the `scores` library, and ensembles whose calibration is known."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import quad
from scipy.stats import norm

from assimilate.verification import statistics as v
from assimilate.verification.crps import ensemble_crps, gaussian_crps, thin
from dynamics.space import Coordinate, Field, LogOnePlus, Space

LINE = Space((Field("h", "m", ("s",)),), {"s": Coordinate(np.arange(3.0), ("s",))})


def pair(members, truth, space=LINE, **more):
    """An analysis and a truth as Datasets from arrays (member, time, cell) and (time, cell)."""
    members, truth = np.asarray(members, float), np.asarray(truth, float)
    times = {"time": np.arange(float(truth.shape[0]))}
    name, grid = space.fields[0].name, space.grid
    analysis = xr.Dataset({name: (("member", "time", *grid), members), **more}, times)
    return analysis, xr.Dataset({name: (("time", *grid), truth)}, times)


def test_scores_of_a_hand_worked_ensemble():
    # One time, three cells, two members: means 1, 2, 3; errors 1, 0, -1; member variances 2, 8, 0.
    analysis, truth = pair([[[0, 0, 3]], [[2, 4, 3]]], [[0, 2, 4]])
    out = v.evaluate(analysis, truth, space=LINE)
    assert out["rmse"] == pytest.approx(np.sqrt(2 / 3))
    assert out["mae"] == pytest.approx(2 / 3)
    # CRPS with the ensemble's own law: mean |x_i - y| - (1/2) mean |x_i - x_j|, cell by cell: 1 - 1/2, 2 - 1, 1 - 0.
    assert out["crps"] == pytest.approx((0.5 + 1.0 + 1.0) / 3)
    # Fair: the pair term doubles for N = 2: 1 - 1, 2 - 2, 1.
    assert out["crps_fair"] == pytest.approx(1 / 3)
    # Spread: mean unbiased variance 10/3 times (N + 1) / N = 3/2, over a mean squared error of 2/3.
    assert out["spread_skill"] == pytest.approx(np.sqrt((10 / 3) * 1.5 / (2 / 3)))
    assert out["rmse_member"] == pytest.approx((np.sqrt((0 + 4 + 1) / 3) + np.sqrt((4 + 4 + 1) / 3)) / 2)


def test_nrmse_is_the_published_quotient_in_normalised_units():
    space = Space.scalars("x", "y", "z")
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3, 7, 5)) * 8 + 3
    mean = truth + rng.normal(size=truth.shape)
    names = ("x", "y", "z")
    times = {"time": np.arange(5.0)}
    analysis = xr.Dataset({f"{n}_mean": (("experiment", "time"), mean[k]) for k, n in enumerate(names)}, times)
    known = xr.Dataset({n: (("experiment", "time"), truth[k]) for k, n in enumerate(names)}, times)
    scoring = v.Scoring(offset=(0.0, 0.0, 25.0), scale=(8.0, 9.0, 8.6))
    shift, scale = np.array([0, 0, 25.0])[:, None, None], np.array([8, 9, 8.6])[:, None, None]
    a, b = (mean - shift) / scale, (truth - shift) / scale
    per_experiment = np.sqrt(((a - b) ** 2).mean((0, 2))) / np.sqrt((b**2).mean((0, 2)))
    found = v.evaluate(analysis, known, space=space, scoring=scoring)
    assert found["nrmse"] == pytest.approx(per_experiment.mean(), rel=1e-12)
    assert "spread_skill" not in found


def test_scores_do_not_depend_on_how_time_is_cut():
    rng = np.random.default_rng(1)
    analysis, truth = pair(rng.normal(size=(6, 8, 3)), rng.normal(size=(8, 3)))
    scoring = v.Scoring(thresholds=(0.2,), drop=2)
    whole = v.scores(v.statistics(analysis, truth, space=LINE, scoring=scoring), scoring)
    cuts = [slice(0, 1), slice(1, 5), slice(5, 8)]
    parts = [v.statistics(analysis.isel(time=c), truth, space=LINE, scoring=scoring) for c in cuts]
    assert v.scores(xr.concat(parts, "time"), scoring) == pytest.approx(whole, rel=1e-12)


def test_no_data_cells_count_nothing():
    mask = np.array([False, True, False])
    space = Space(LINE.fields, LINE.coords, mask=mask)
    full = pair([[[0, np.nan, 3]], [[2, np.nan, 3]]], [[0, np.nan, 4]], space)
    small = Space(LINE.fields, {"s": Coordinate(np.array([0.0, 2.0]), ("s",))})
    rest = pair([[[0, 3]], [[2, 3]]], [[0, 4]], small)
    scoring = v.Scoring(thresholds=(1.0,))
    masked = v.evaluate(*full, space=space, scoring=scoring)
    assert masked == pytest.approx(v.evaluate(*rest, space=small, scoring=scoring))
    ranks = v.rank_histogram(v.statistics(*full, space=space, scoring=scoring))
    assert float(ranks["rank_frequency"].sum()) == pytest.approx(1.0)


def test_latitudes_weigh_by_their_area():
    latitudes = np.array([0.0, 60.0])
    coords = {
        "lat": Coordinate(latitudes, ("lat",), units="degrees_north", standard_name="latitude"),
        "lon": Coordinate(np.array([0.0, 1.0]), ("lon",), units="degrees_east", standard_name="longitude"),
    }
    space = Space((Field("t", "K", ("lat", "lon")),), coords)
    truth = xr.Dataset({"t": (("time", "lat", "lon"), np.zeros((1, 2, 2)))}, {"time": [0.0], "lat": latitudes})
    analysis = xr.Dataset({"t_mean": (("time", "lat", "lon"), np.array([[[0.0, 0.0], [3.0, 3.0]]]))}, {"time": [0.0]})
    # cos 60 = 1/2: the error of 3 counts a third; with equal cells a half.
    assert v.evaluate(analysis, truth, space=space)["rmse"] == pytest.approx(np.sqrt(9 / 3), rel=1e-6)
    equal = v.Scoring(weights="equal")
    assert v.evaluate(analysis, truth, space=space, scoring=equal)["rmse"] == pytest.approx(np.sqrt(9 / 2))


def test_rain_is_scored_in_log_units_and_events_in_millimetres():
    space = Space((Field("rain", "mm", ("s",), transform=LogOnePlus(1.0)),), LINE.coords)
    truth = np.array([[0.0, 1.0, 20.0]])
    analysis, known = pair([[[0.0, 3.0, 5.0]]], truth, space)
    scoring = v.Scoring(thresholds=(1.0, 10.0), threshold_unit="mm")
    out = v.evaluate(analysis, known, space=space, scoring=scoring)
    expected = np.sqrt(np.mean((np.log1p([0, 3, 5]) - np.log1p([0, 1, 20])) ** 2))
    assert out["rmse"] == pytest.approx(expected, rel=1e-6)
    # At 1 mm: two hits ("at least" includes exactly 1 mm), nothing else. At 10 mm: one miss.
    assert out["csi_1mm"] == 1.0 and out["csi_10mm"] == 0.0


def test_weighted_crps_equals_that_of_repeated_members():
    rng = np.random.default_rng(2)
    x = xr.DataArray(rng.normal(size=(3, 4)), dims=("member", "cell"))
    y = xr.DataArray(rng.normal(size=4), dims="cell")
    weights = xr.DataArray(np.log([0.5, 0.25, 0.25]), dims="member")
    repeated = x.isel(member=[0, 0, 1, 2])
    xr.testing.assert_allclose(ensemble_crps(x, y, weights), ensemble_crps(repeated, y))


@pytest.mark.parametrize("fair", [False, True])
def test_weighted_crps_with_equal_weights_is_that_of_the_library(fair):
    rng = np.random.default_rng(3)
    x = xr.DataArray(rng.normal(size=(9, 5)), dims=("member", "cell"))
    y = xr.DataArray(rng.normal(size=5), dims="cell")
    equal = xr.DataArray(np.zeros(9), dims="member")
    xr.testing.assert_allclose(ensemble_crps(x, y, equal, fair=fair), ensemble_crps(x, y, fair=fair))


@pytest.mark.parametrize(("mean", "std", "truth"), [(0.0, 1.0, 0.3), (2.0, 0.5, -1.0), (1.0, 3.0, 1.0)])
def test_gaussian_crps_is_the_integral_of_its_definition(mean, std, truth):
    def square(z):
        return (norm.cdf(z, mean, std) - (z >= truth)) ** 2

    integral = quad(square, mean - 12 * std, truth)[0] + quad(square, truth, mean + 12 * std)[0]
    arrays = (xr.DataArray([value]) for value in (mean, std, truth))
    assert float(gaussian_crps(*arrays)[0]) == pytest.approx(integral, rel=1e-6)


def test_crps_of_no_spread_is_the_absolute_error():
    truth = xr.DataArray([1.0])
    assert float(gaussian_crps(xr.DataArray([4.0]), xr.DataArray([0.0]), truth)[0]) == 3.0
    times = {"time": [0.0]}
    analysis = xr.Dataset({"h_mean": (("time", "s"), [[1.0, 2.0, 5.0]])}, times)
    known = xr.Dataset({"h": (("time", "s"), [[1.0, 2.0, 2.0]])}, times)
    out = v.evaluate(analysis, known, space=LINE)
    assert out["crps"] == out["mae"] == 1.0


def test_a_calibrated_ensemble_has_spread_equal_to_skill_and_flat_ranks():
    # Truth and 10 members from one law, about a centre of its own at each of 20,000 (time, cell) cases.
    rng = np.random.default_rng(4)
    centre = rng.normal(size=(1, 5000, 4))
    space = Space((Field("h", "m", ("s",)),), {"s": Coordinate(np.arange(4.0), ("s",))})
    analysis, truth = pair(centre + rng.normal(size=(10, 5000, 4)), (centre + rng.normal(size=(1, 5000, 4)))[0], space)
    pooled = v.statistics(analysis, truth, space=space)
    # Relative standard error of each variance is sqrt(2 / 20,000) = 0.01, of the ratio of roots about 0.007.
    assert v.scores(pooled)["spread_skill"] == pytest.approx(1.0, abs=0.03)
    ranks = v.rank_histogram(pooled)["rank_frequency"] * 11
    assert ranks.sizes["rank"] == 11
    # Each bin holds 20,000 / 11 cases: standard error 0.022; 5 of them would miss a U shape of 11 %.
    assert float(abs(ranks - 1).max()) < 0.11


def test_weights_of_members_enter_mean_and_spread():
    weights = np.log(np.array([[0.75], [0.25]]))
    analysis, truth = pair([[[0, 0, 0]], [[4, 4, 4]]], [[1, 1, 1]], log_weights=(("member", "time"), weights))
    out = v.evaluate(analysis, truth, space=LINE)
    assert out["rmse"] == 0.0
    assert out["crps"] == pytest.approx(0.75 * 1 + 0.25 * 3 - 0.75 * 0.25 * 4)


def test_thinning_keeps_whole_members_in_proportion_to_their_weights():
    x = xr.DataArray(np.arange(100.0), dims="member")
    assert thin(x, None, 4).values.tolist() == [12, 37, 62, 87]
    weights = np.full(100, 0.5 / 99)
    weights[7] = 0.5
    kept = thin(x, xr.DataArray(np.log(weights), dims="member"), 20)
    assert (kept == 7).sum() == 10


def test_an_analysis_that_is_not_finite_is_an_error_not_a_gap():
    times = {"time": [0.0]}
    analysis = xr.Dataset({"h_mean": (("time", "s"), [[1.0, np.inf, 5.0]])}, times)
    known = xr.Dataset({"h": (("time", "s"), [[1.0, 2.0, 2.0]])}, times)
    with pytest.raises(ValueError, match="inf at time=0"):
        v.evaluate(analysis, known, space=LINE)


def test_all_scores_have_a_name_in_the_table():
    rng = np.random.default_rng(5)
    analysis, truth = pair(rng.normal(size=(6, 8, 3)), rng.normal(size=(8, 3)))
    assert set(v.evaluate(analysis, truth, space=LINE)) <= set(v.SCORES)
    assert torch.get_default_dtype() == torch.float32
