"""Bad input costs one clear line: never a wrong number in silence, an unrelated error, or something already written.

Values, times and arguments; tables, cards, settings and results have files of their own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from assimilate import registry, run
from assimilate.errors import UserError
from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.particle import BootstrapFilter
from dynamics import CapabilityError, Coordinate, Field, Space
from observations import GaussianNoise, Identity, Instrument, Likelihood, Mask, Select
from tests.lorenz_run import DATES, LIKELIHOOD, MODEL, TIMES, VALUES, analysed, few, finite, observed, speaks

PLANE = {d: Coordinate(np.arange(4.0), (d,), "m") for d in "yx"}
WIND = Space((Field("u", "m/s", ("y", "x")), Field("v", "m/s", ("y", "x"))), PLANE)

# ---------------------------------------------------------------------------------------------------- observed values


@pytest.mark.parametrize("method", [ETKF(MODEL, inflation=1.1), BootstrapFilter(MODEL)], ids=["ETKF", "particles"])
@given(seen=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=4, max_size=4))
@few
def test_whatever_is_missing_there_is_an_analysis_and_it_is_the_forecast_where_nothing_is_seen(method, seen):
    seen = np.array(seen)
    result = analysed(method, observed(np.where(seen, VALUES, np.nan)))
    assert result.sizes["time"] == 4 and finite(result)
    for k in np.flatnonzero(~seen.any(1)):
        now = result.isel(time=k)
        for name in "xyz":
            np.testing.assert_array_equal(now[f"{name}_mean"], now[f"{name}_background_mean"])
        assert float(now["log_evidence"]) == 0.0


@given(place=st.tuples(st.integers(0, 3), st.integers(0, 2)), sign=st.sampled_from([1, -1]), lazy=st.booleans())
@few
def test_an_infinite_value_is_an_error_wherever_it_stands(place, sign, lazy):
    values = VALUES.copy()
    values[place] = sign * np.inf
    observations = observed(values)
    with pytest.raises(UserError, match="infinite value"):
        analysed(observations=observations.chunk(time=1) if lazy else observations)


@given(order=st.permutations(range(3)))
@few
def test_the_order_of_the_values_is_no_matter_if_the_operator_has_the_same(order):
    def of(order):
        noise = GaussianNoise(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[list(order)])
        likelihood = Likelihood(Mask(MODEL.space, np.array(order)), noise)
        return analysed(observations=observed(VALUES[:, order]), likelihood=likelihood, dtype=torch.float64)

    # Four analyses of a model that grows errors by less than 2 in a step: rounding of 1e-16 stays far below 1e-9.
    for name in ("x", "y", "z", "log_evidence"):
        np.testing.assert_allclose(of(order)[name], of(range(3))[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["int64", "int8", "uint8", "bool", "float32", "float64"])
def test_numbers_of_any_type_are_the_same_numbers(kind):
    values = np.array([[3, 0, 1], [1, 1, 0], [0, 0, 1], [2, 1, 1]]).astype(kind)
    plain = analysed(observations=observed(values.astype("float64")))
    xr.testing.assert_equal(analysed(observations=observed(values)).drop_attrs(), plain.drop_attrs())


@pytest.mark.parametrize("kind", ["U4", "object", "complex128", "datetime64[ns]", "timedelta64[ns]"])
def test_what_is_no_number_is_refused(kind):
    with pytest.raises(UserError, match=r"'y' are of type .*expected numbers"):
        analysed(observations=observed(np.ones((4, 3)).astype(kind)))


@given(count=st.integers(1, 7).filter(lambda n: n != 3), lead=st.sampled_from([(), (1,), (3,)]))
@few
def test_the_number_of_values_is_that_of_the_operator(count, lead):
    dims = ("experiment", "time", "value")[1 - len(lead) :]
    with pytest.raises(UserError, match=f"has {count} values, .* has 3"):
        analysed(observations=observed(np.zeros((*lead, 4, count)), dims=dims))


@given(seen=st.integers(1, 4), known=st.integers(1, 4))
@few
def test_numbers_of_experiments_agree_or_it_is_said(seen, known):
    observations = observed(np.zeros((seen, 4, 3)), dims=("experiment", "time", "value"))
    initial = torch.randn(known, 4, 3, generator=torch.Generator().manual_seed(0))
    if seen == known or 1 in (seen, known):
        assert analysed(observations=observations, initial=initial).sizes["experiment"] == max(seen, known)
        return
    with pytest.raises(UserError, match=rf"{seen}\b.*\b{known}\b|{known}\b.*\b{seen}\b"):
        analysed(observations=observations, initial=initial)


@pytest.mark.parametrize("instrument", [False, True])
def test_values_on_the_grid_have_its_dims_in_its_order(instrument):
    likelihood = Likelihood(Identity(WIND), GaussianNoise(1.0))
    method = registry.resolve("method", "LinearInterpolation")(WIND)
    values = np.arange(64.0).reshape(2, 2, 4, 4)
    right = xr.Dataset({"wind": (("time", "component", "y", "x"), values)}, {"time": [0.0, 1.0]})

    def analysed(observations):
        if instrument:
            return run(method, Instrument("wind", observations, likelihood))
        return run(method, observations, likelihood=likelihood)

    np.testing.assert_array_equal(analysed(right)["u_mean"], values[:, 0])
    with pytest.raises(UserError, match=r"has the dims \['x', 'y'\], the grid \['y', 'x'\]; transpose"):
        analysed(right.transpose("time", "component", "x", "y"))


# -------------------------------------------------------------------------------------------------------------- times


MOMENTS = st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 2.4, math.nan, math.inf, -math.inf])


@given(steps=st.lists(MOMENTS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_times_increase_in_whole_steps_or_it_is_said(steps):
    times = np.array(steps)
    observations = observed(VALUES[: len(times)], MODEL.dt * times)
    right = bool(np.isfinite(times).all() and (np.diff(times) > 0).all() and (times[0] >= 0))
    if right and all(t == round(t) for t in steps):
        assert analysed(observations=observations, start=0.0).sizes["time"] == len(times)
        return
    with pytest.raises(ValueError, match="time") as caught:
        analysed(observations=observations, start=0.0)
    assert speaks(caught.value)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.array(list("abcd")), "time holds <U1; expected numbers or dates"),
        (np.array([0, 0.1, None, 0.2], object), "time holds object"),
        (np.arange(4).astype("timedelta64[s]").astype("timedelta64[ns]"), "time holds timedelta64"),
        (1j * TIMES, "time holds complex128"),
        (np.where(np.arange(4) == 2, np.datetime64("NaT"), DATES), "time holds NaT"),
        (DATES[::-1].copy(), "not increasing, 2024-01-03.* comes after 2024-01-04"),
    ],
)
def test_what_is_no_time_axis_is_refused(times, message):
    with pytest.raises(UserError, match=message):
        analysed(observations=observed(times=times), time_unit="D")


@pytest.mark.parametrize(
    ("times", "start"),
    [(TIMES, DATES[0]), (DATES, 0.0), (TIMES, math.nan), (TIMES, -math.inf), (TIMES, "a"), (TIMES, np.zeros(2))],
)
def test_a_start_that_is_none_is_refused(times, start):
    with pytest.raises(ValueError, match="time") as caught:
        analysed(observations=observed(times=times), start=start)
    assert speaks(caught.value)


def test_no_time_at_all_and_two_time_dims():
    with pytest.raises(UserError, match="no 'time' coordinate"):
        analysed(observations=observed().drop_vars("time"))
    with pytest.raises(UserError, match=r"shape \(0,\)"):
        analysed(observations=observed().isel(time=slice(0, 0)))
    plane = observed().drop_vars("time").assign_coords(time=(("time", "other"), np.zeros((4, 2))))
    with pytest.raises(UserError, match="along one dim"):
        analysed(observations=plane)


# ---------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "change",
    [
        *({"members": v} for v in (0, -1, 2.5, math.nan, "4", None)),
        *({"seed": v} for v in (-1, 2.5, 2**40)),
        *({"keep": v} for v in (0, -1, 2.5, "4")),
        *({"first": v} for v in (-1, 1.5, math.nan, "1", True, None, 2**32 - 1)),
        *({"dtype": v} for v in (torch.int32, torch.float16, "float32", np.float32)),
        *({"device": v} for v in ("gpu", "cuda:99")),
        *({"likelihood": v} for v in (GaussianNoise(1.0), Select(MODEL.space, [0]), Likelihood, 3, "x")),
        {"likelihood": lambda now: None},
        {"likelihood": Likelihood(Identity(MODEL.space), GaussianNoise([1.0, 1.0]))},
        {"likelihood": Likelihood(Identity((5,)), GaussianNoise(1.0))},
        *({"initial": torch.zeros(s)} for s in ((3,), (4, 3), (1, 4, 2), (1, 3, 3), (2, 2, 4, 3))),
        {"initial": torch.full((1, 4, 3), math.nan)},
        {"initial": np.zeros((1, 4, 3))},
        {"initial": xr.Dataset({"q": ((), 1.0)})},
        *({"initial": torch.zeros(1, 1, 3), "initial_std": v} for v in (-1.0, math.nan, math.inf, (1.0, 1.0), "a")),
        {"initial_std": 1.0},
        *({"time_unit": v} for v in ("day", "")),
        *({"schedule": v} for v in ("sometimes", "")),
        {"on_divergence": "ignore"},
        *({"observations": v} for v in (None, 3, [1, 2], [], [observed()])),
        {"observations": observed()["y"]},
        *({"method": v} for v in (3, EnKF)),
    ],
    ids=lambda c: ", ".join(f"{k}={v if isinstance(v, int | float | str) else type(v).__name__}" for k, v in c.items()),
)
def test_arguments_that_cannot_be_are_refused_in_one_line(change):
    given = {"method": ETKF(MODEL), "observations": observed(), "likelihood": LIKELIHOOD, "members": 4, "seed": 1}
    given |= change
    with pytest.raises((ValueError, CapabilityError)) as caught:
        run(given.pop("method"), given.pop("observations"), **given)
    assert speaks(caught.value), caught.value
