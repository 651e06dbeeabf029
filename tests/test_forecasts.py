"""Forecasts from analyses: the law of an autoregressive process at every lead, labels, dates, rows by themselves."""

import numpy as np
import pytest
import torch
import xarray as xr

from assimilate import EnKF, Experiment, UserError
from assimilate.forecasts import forecast, forecast_scores
from assimilate.verification.statistics import evaluate
from dynamics import LinearGaussian, Lorenz63
from observations import GaussianNoise, Identity, Likelihood

COEFFICIENT, NOISE = 0.8, 0.6


def scalar() -> LinearGaussian:
    return LinearGaussian.scalar(COEFFICIENT, NOISE)


def starts(count: int, members: int) -> xr.Dataset:
    x = torch.full((count, members, 1, 1), 2.0, dtype=torch.float64)
    return scalar().space.to_dataset(x, ("experiment", "member", "time"), {"time": [3.0]})


def test_mean_and_variance_at_every_lead() -> None:
    n = 20_000
    ahead = forecast(scalar(), starts(1, n), [0, 1, 4], dtype=torch.float64)["x0"].squeeze()
    for lead in (0, 1, 4):
        mean = 2.0 * COEFFICIENT**lead
        variance = NOISE**2 * (1 - COEFFICIENT ** (2 * lead)) / (1 - COEFFICIENT**2)
        drawn = ahead.sel(lead_time=lead)
        # Five standard errors of a mean and of a Gaussian's variance.
        assert abs(float(drawn.mean()) - mean) <= 5 * np.sqrt(variance / n)
        assert abs(float(drawn.var(ddof=1)) - variance) <= 5 * variance * np.sqrt(2 / n)


def test_scores_by_lead_are_those_of_the_analysis_at_no_lead() -> None:
    model = Lorenz63()
    twin = Experiment(
        model, Likelihood(Identity(model.space), GaussianNoise(1.0)), steps=40, every=10, seed=2, experiments=2
    )
    truth, observations = twin.simulate()
    analysis = twin.run(EnKF(model), truth, observations, members=20)
    some = analysis.isel(time=slice(10, None, 5))
    ahead = forecast(model, some, [0.0, 0.25, 1.25])
    assert ahead["x"].dims == ("experiment", "member", "time", "lead_time")
    assert np.allclose(ahead["valid_time"].values, some["time"].values[:, None] + [0.0, 0.25, 1.25])
    found = forecast_scores(ahead, truth)
    plain = evaluate(some, truth)
    for name in ("rmse", "crps", "spread_skill"):
        assert float(found[name][0]) == pytest.approx(plain[name], rel=1e-6)
    assert found["forecasts"].values.tolist() == [6, 6, 5]
    assert float(found["rmse"][2]) > float(found["rmse"][0])


def test_rows_keep_their_numbers_and_weights_go_along() -> None:
    few = forecast(
        scalar(), starts(2, 5).assign(log_weights=(("experiment", "member", "time"), np.full((2, 5, 1), -1.6))), [3]
    )
    many = forecast(scalar(), starts(3, 9), [3])
    xr.testing.assert_equal(few[["x0"]], many[["x0"]].isel(experiment=slice(2), member=slice(5)))
    assert "log_weights" in few and "log_weights" not in many


def test_dates() -> None:
    at = starts(1, 3).isel(experiment=0).assign_coords(time=np.array(["2020-02-28T23:00"], "datetime64[ns]"))
    ahead = forecast(scalar(), at, [0, 2], time_unit="h")
    assert ahead["lead_time"].values[1] == np.timedelta64(2, "h")
    assert ahead["valid_time"].values[0, 1] == np.datetime64("2020-02-29T01:00")


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="no `member` dim"):
        forecast(scalar(), starts(1, 2).isel(member=0), [1])
    with pytest.raises(UserError, match="increasing numbers from 0 on"):
        forecast(scalar(), starts(1, 2), [2, 1])
    with pytest.raises(UserError, match=r"lead 0.5: .* whole number"):
        forecast(scalar(), starts(1, 2), [0.5])
