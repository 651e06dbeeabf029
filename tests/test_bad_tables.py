"""Tables of observations: whatever a column holds is used, left out or refused in one line.

A ring of six cells, three rows.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from assimilate import run
from assimilate.errors import UserError
from assimilate.filters.ensemble import ETKF
from dynamics import LinearGaussian, florence_space
from observations import GaussianNoise, Instrument, Stations
from tests.lorenz_run import DATES, LIKELIHOOD, few, finite, observed, speaks

RING = LinearGaussian.ring(6)
ROWS = {"time": [1.0, 1.0, 2.0], "site": [0.2, 1.0, 2.0], "value": [1.0, 2.0, 3.0], "error": [1.0, 0.5, 1.0]}


def table(**more):
    columns = {name: column for name, column in (ROWS | more).items() if column is not None}
    return xr.Dataset({name: ("location", np.asarray(column)) for name, column in columns.items()})


def of_table(*tables, **more):
    given = [Instrument(chr(ord("a") + k), one) for k, one in enumerate(tables)]
    return run(ETKF(RING), given, **{"members": 5, "seed": 1, "start": 0.0, "dtype": torch.float64} | more)


@given(order=st.permutations(range(3)))
@few
def test_rows_of_a_table_come_in_any_order(order):
    # One analysis after the other adds the rows in another order: rounding only.
    np.testing.assert_allclose(of_table(table().isel(location=order))["x"], of_table(table())["x"], atol=1e-12)


@given(
    places=st.lists(st.sampled_from([0.0, 1.3, 5.4, math.nan, math.inf, -math.inf]), min_size=3, max_size=3),
    flags=st.lists(st.sampled_from([0, 1, -1, 2.5, math.nan]), min_size=3, max_size=3),
    errors=st.lists(st.sampled_from([0.5, 1.0, math.nan]), min_size=3, max_size=3),
    values=st.lists(st.sampled_from([-1.0, 2.0, math.nan]), min_size=3, max_size=3),
)
@few
def test_rows_that_cannot_be_used_are_as_if_they_were_not_there(places, flags, errors, values):
    rows = {"site": places, "flag": flags, "error": errors, "value": values, "time": [1.0, 1.0, 1.0]}
    inside = np.isfinite(places)
    usable = inside & (np.array(flags) == 0) & np.isfinite(errors) & np.isfinite(values)
    if not inside.any():
        with pytest.raises(UserError, match="has no finite position"):
            of_table(table(**rows))
        return
    result = of_table(table(**rows))
    assert finite(result)
    if not usable.any():
        np.testing.assert_array_equal(result["x_mean"], result["x_background_mean"])
        return
    kept = of_table(table(**rows).isel(location=np.flatnonzero(usable)))
    np.testing.assert_allclose(result["x_mean"], kept["x_mean"], atol=1e-12)


NUMBERS = st.sampled_from([0.5, -1.0, 0.0, math.nan, math.inf, -math.inf])
WRONG = st.one_of(
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.lists(st.sampled_from(["1", "good", "", "2024-01-01"]), min_size=3, max_size=3),
    st.lists(st.sampled_from([1.0, None, "a"]), min_size=3, max_size=3).map(lambda v: np.array(v, dtype=object)),
    st.just([1j, 1j, 1j]),
    st.just(np.arange(3).astype("datetime64[s]").astype("datetime64[ns]")),
    st.just(np.arange(3).astype("timedelta64[s]").astype("timedelta64[ns]")),
    st.just(None),
)


@given(column=st.sampled_from([*ROWS, "flag", "withheld", "variable", "station", "instrument"]), content=WRONG)
@settings(max_examples=80)
def test_a_column_of_anything_is_used_or_refused_in_one_line(column, content):
    try:
        result = of_table(table(**{column: content}))
    except ValueError as error:
        assert speaks(error), error
        return
    assert finite(result)
    # Only numbers can have been used: texts, dates, objects and complex numbers are names, or errors.
    if column not in ("variable", "station", "instrument") and content is not None:
        assert np.asarray(content).dtype.kind in "fiub"


@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=3))
@few
def test_empty_tables_among_others_are_no_matter(counts):
    tables = [table().isel(location=slice(0, n)) for n in counts]
    if not any(counts):
        with pytest.raises(UserError, match="no observations to assimilate"):
            of_table(*tables)
        return
    full = of_table(*[one for one in tables if one.sizes["location"]])
    np.testing.assert_array_equal(of_table(*tables)["x"], full["x"])


@given(copies=st.integers(2, 4))
@settings(max_examples=3)
def test_a_row_that_is_there_n_times_has_an_nth_of_its_variance(copies):
    # Repeated rows are independent observations: n of error s weigh like one of error s / sqrt(n).
    once = table(error=np.array(ROWS["error"]) / math.sqrt(copies))
    often = xr.concat([table()] * copies, "location")
    np.testing.assert_allclose(of_table(often)["x_mean"], of_table(once)["x_mean"], atol=1e-10)


@given(name=st.sampled_from(["time", "experiment", "member", "location", "a_slot", "a_row", "a", "", "b", "a.2", "y"]))
@few
def test_names_of_instruments_are_their_own(name):
    try:
        result = run(ETKF(RING), [Instrument("a", table()), Instrument(name, table())], members=4, start=0.0)
    except ValueError as error:
        assert speaks(error) and ("name" in str(error) or "call" in str(error))
        assert name not in ("b", "a.2", "y")
        return
    assert name in ("b", "a.2", "y") and finite(result)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: of_table(table(site=None)), "no 'site'"),
        (lambda: of_table(table(variable=["x", "q", "x"])), "no variable 'q' in the state"),
        (lambda: of_table(table(), table(time=DATES[:3])), "mix dates and plain numbers"),
        (lambda: of_table(table(time=[-1.0, 1.0, 2.0])), "before the start"),
        (lambda: of_table(table(time=[1.0, 1.5, 2.0])), "0.5 steps"),
        (lambda: Instrument("a", table(), error=math.inf), "expected a standard deviation"),
        (lambda: Instrument("a", 3), "was given a int, no Dataset"),
        (lambda: Instrument("a", observed(), GaussianNoise(1.0)), "is a GaussianNoise; expected Likelihood"),
        (lambda: Instrument("a", xr.Dataset({"y": ("z", [1.0])}), LIKELIHOOD), "expected 'time'"),
    ],
)
def test_what_does_not_go_together_is_said(made, message):
    with pytest.raises(ValueError, match=message) as caught:
        made()
    assert speaks(caught.value)


def test_a_latitude_beyond_a_pole_is_outside_of_a_grid_on_the_sphere():
    # Its unit vector is that of a place on the other side of the pole: here one in the middle of the grid.
    space = florence_space()
    lat, lon = (float(space.coords[name].numbers[60, 40]) for name in space.spherical)
    Stations(space, [[lat, lon]])
    with pytest.raises(ValueError, match="outside the grid"):
        Stations(space, [[180.0 - lat, lon + 180.0]])
