"""Tables of point observations: every form becomes the same table, and what is wrong is said."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from dynamics.errors import DataError
from dynamics.fields import Coordinate, Field
from dynamics.space import Space
from observations.instruments import Instrument
from observations.ioda import to_groups
from observations.tables import channels_of, places_of, read_table

DATES = np.array(["2024-01-01T00:10", "2024-01-01T00:55", "2024-01-01T02:00"], "datetime64[ns]")


def frame(**more):
    columns = {"time": DATES, "lat": [10.0, 20.0, 30.0], "lon": [5.0, 6.0, 7.0], "value": [1.0, np.nan, 3.0]}
    return pd.DataFrame(columns | {"error": [0.1, 0.2, 0.3], "flag": [0, 0, 2]} | more)


def globe(*names, units="K"):
    lat = Coordinate(np.arange(0.0, 41.0, 10.0), ("lat",), "degrees_north", standard_name="latitude")
    lon = Coordinate(np.arange(0.0, 21.0, 5.0), ("lon",), "degrees_east", standard_name="longitude")
    return Space(tuple(Field(n, units, ("lat", "lon")) for n in names), {"lat": lat, "lon": lon})


def same(a, b):
    for name in ("value", "error", "flag", "time", "lat", "lon"):
        np.testing.assert_array_equal(a[name].values, b[name].values)


def test_frames_files_and_datasets_are_one_table(tmp_path):
    table = read_table(frame())
    assert dict(table.sizes) == {"location": 3}
    frame().to_csv(tmp_path / "t.csv", index=False)
    table.to_netcdf(tmp_path / "t.nc")
    same(read_table(tmp_path / "t.csv"), table)
    same(read_table(tmp_path / "t.nc"), table)
    same(read_table(table.rename(location="obs").rename(time="datetime")), table)
    same(read_table(frame().rename(columns={"value": "t2m"}), value="t2m"), table)
    assert places_of(table, globe("t")).tolist() == [[10.0, 5.0], [20.0, 6.0], [30.0, 7.0]]


def test_several_value_columns_are_rows_with_a_variable():
    table = read_table(frame(u=[1.0, 2.0, 3.0], v=[4.0, 5.0, 6.0]).drop(columns="value"), value=["u", "v"])
    assert table["value"].values.tolist() == [1, 2, 3, 4, 5, 6]
    assert channels_of(table, globe("u", "v")).tolist() == [0, 0, 0, 1, 1, 1]


def test_groups_as_ioda_has_them_there_and_back(tmp_path):
    seconds = np.array([600, 3300, 7200])
    groups = {
        "MetaData": xr.Dataset(
            {
                "latitude": ("Location", [10.0, 20.0, 30.0]),
                "longitude": ("Location", [5.0, 6.0, 7.0]),
                "dateTime": ("Location", seconds, {"units": "seconds since 2024-01-01T00:00:00Z"}),
                "stationIdentification": ("Location", np.array(["a", "b", "c"], dtype=object)),
            }
        ),
        "ObsValue": xr.Dataset({"t": ("Location", [1.0, 9.9e36, 3.0]), "q": ("Location", [7.0, 8.0, 9.0])}),
        "ObsError": xr.Dataset({"t": ("Location", [0.1, 0.2, 0.3]), "q": ("Location", [1.0, -1.0, 9.9e36])}),
        "PreQC": xr.Dataset({"t": ("Location", [0, 0, 2])}),
    }
    xr.DataTree.from_dict(groups).to_netcdf(tmp_path / "ioda.nc4")
    for table in (read_table(groups), read_table(tmp_path / "ioda.nc4")):
        same(table.isel(location=slice(0, 3)), read_table(frame()))
        assert table["variable"].values.tolist() == ["t"] * 3 + ["q"] * 3
        assert table["station"].values.tolist() == ["a", "b", "c"] * 2
        # An error of -1 and one that is missing cannot be used; without PreQC nothing is rejected.
        np.testing.assert_array_equal(table["error"].values[3:], [1.0, np.nan, np.nan])
        assert table["flag"].values[3:].tolist() == [0, 0, 0]
    again = read_table(to_groups(read_table(groups)))
    both = again["variable"].values == "t"
    same(again.isel(location=both).isel(location=slice(0, 3)), read_table(frame()))


def test_channels_of_a_radiometer_are_variables():
    groups = {
        "MetaData": xr.Dataset({"dateTime": ("Location", [1.0, 2.0])}),
        "ObsValue": xr.Dataset({"bt": (("Location", "Channel"), [[1.0, 2.0], [3.0, 4.0]])}, {"Channel": [7, 9]}),
    }
    table = read_table(groups, error=0.5)
    assert table["variable"].values.tolist() == ["bt[7]", "bt[7]", "bt[9]", "bt[9]"]
    assert table["value"].values.tolist() == [1, 3, 2, 4] and table["error"].values.tolist() == [0.5] * 4
    assert table["time"].values.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: frame().drop(columns="time"), "no column 'time'"),
        (lambda: frame().drop(columns="value"), "say which column holds the values"),
        (lambda: frame(value=[1.0, np.inf, 2.0]), "infinite value"),
        (lambda: frame(error=[1.0, 0.0, 1.0]), "error of row 1 is 0.0"),
        (lambda: frame(time=["today", "x", "y"]), "not a time"),
        (lambda: frame(value=["a", "b", "c"]), "does not hold numbers"),
        (lambda: xr.Dataset({"value": ("time", [1.0])}, {"time": [0.0]}), "a table of observations has 'location'"),
        (lambda: {"ObsValue": xr.Dataset()}, "expected MetaData and ObsValue"),
        (lambda: 3.0, "float is no table"),
        (lambda: "nowhere.csv", "no such file"),
    ],
)
def test_what_is_wrong_is_said(made, message):
    with pytest.raises(DataError, match=message):
        read_table(made())


def test_a_table_must_fit_the_state():
    table = read_table(frame())
    with pytest.raises(DataError, match="needs a column 'variable'"):
        channels_of(table, globe("u", "v"))
    with pytest.raises(DataError, match="no variable 'w'"):
        channels_of(table.assign_coords(variable=("location", ["w"] * 3)), globe("u", "v"))
    with pytest.raises(DataError, match="no 'lat'"):
        places_of(table.drop_vars("lat"), globe("t"))
    assert channels_of(table, globe("t")).tolist() == [0, 0, 0]


def test_rows_are_read_from_the_state_in_their_order():
    space = globe("u", "v")
    rows = frame(variable=["v", "u", "v"])
    instrument = Instrument("buoys", read_table(rows))
    likelihood = instrument.row_likelihood(space, instrument.observations, instrument.errors())
    # u = latitude and v = 100 + longitude are linear in the grid's index: bilinear values are exact.
    u = torch.arange(0.0, 41.0, 10.0).double()[:, None].expand(5, 5)
    v = 100 + torch.arange(0.0, 21.0, 5.0).double()[None].expand(5, 5)
    seen = likelihood.operator(torch.stack([u, v]))
    torch.testing.assert_close(seen, torch.tensor([105.0, 20.0, 107.0], dtype=torch.float64))
    places = torch.tensor([[10.0, 5.0], [20.0, 6.0], [30.0, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(likelihood.operator.positions, places)
    torch.testing.assert_close(likelihood.noise.std, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))


def test_rows_outside_the_grid_are_found_one_by_one():
    rows = frame(lat=[10.0, 80.0, 30.0])
    instrument = Instrument("buoys", read_table(rows))
    assert instrument.usable(globe("t")).tolist() == [True, False, True]
    nowhere = Instrument("buoys", read_table(frame(lat=[70.0, 80.0, 89.0])))
    with pytest.raises(DataError, match=r"'buoys'.*station 0.*outside the grid"):
        nowhere.usable(globe("t"))


def test_a_state_without_a_grid_needs_the_variable_only():
    space = Space.scalars("x", "y", "z")
    table = read_table(pd.DataFrame({"time": [0.1, 0.2], "value": [1.0, 2.0], "variable": ["z", "x"]}), error=1.0)
    instrument = Instrument("probe", table)
    operator = instrument.row_likelihood(space, table, instrument.errors()).operator
    assert operator(torch.tensor([1.0, 2.0, 3.0])).tolist() == [3.0, 1.0]
    assert instrument.usable(space).all()


def test_an_instrument_says_what_it_lacks():
    table = read_table(frame()).drop_vars("error")
    with pytest.raises(DataError, match="no 'error', and no error"):
        Instrument("a", table).errors()
    assert Instrument("a", table, error=0.4).errors().tolist() == [0.4] * 3
    with pytest.raises(ValueError, match="need a likelihood"):
        Instrument("a", xr.Dataset({"y": ("time", [1.0])}, {"time": [0.0]}))
    with pytest.raises(ValueError, match="expected 'nearest' or 'bilinear'"):
        Instrument("a", table, interpolation="cubic")
