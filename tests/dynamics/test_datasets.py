"""Opening data: the shipped sample, lazily, and errors of one line."""

import sys

import numpy as np
import pytest
import xarray as xr

from dynamics import DataError, florence, florence_space, open_dataset


def test_florence():
    ds = open_dataset("florence")
    rain = ds.precipitation
    assert rain.dims == ("time", "y", "x") and rain.shape == (23, 118, 87) and rain.units == "mm"
    assert rain.chunks is not None
    # Figures of the data's description: 57 % of cells above 0.1 mm, maximum 163.75 mm, 13 September 19 UTC on.
    assert float((rain > 0.1).mean()) == pytest.approx(0.57, abs=0.005)
    assert float(rain.max()) == 163.75
    assert str(ds.time.values[0]).startswith("2018-09-13T19") and str(ds.time.values[-1]).startswith("2018-09-14T17")
    assert ds.x.units == "km" and float(ds.x[1] - ds.x[0]) == 4
    # Log(1 + mm) in the Space.
    assert float(florence_space().to_tensor(ds).max()) == pytest.approx(np.log1p(163.75), rel=1e-6)


def write(path, times, name="rain"):
    shape = (len(times), 3, 2)
    data = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    ds = xr.Dataset({name: (("time", "y", "x"), data, {"units": "mm"})}, {"time": ("time", times)})
    ds.to_netcdf(path)
    return ds


def test_netcdf_in_chunks(tmp_path):
    written = write(tmp_path / "a.nc", np.arange(10.0))
    ds = open_dataset(tmp_path / "a.nc", variables=["rain"], chunk=4)
    assert ds.rain.chunks == ((4, 4, 2), (3,), (2,))
    xr.testing.assert_equal(ds.load(), written)


def test_without_time(tmp_path):
    write(tmp_path / "a.nc", [0.0])
    xr.open_dataset(tmp_path / "a.nc").isel(time=0, drop=True).to_netcdf(tmp_path / "b.nc")
    assert open_dataset(tmp_path / "b.nc").rain.shape == (3, 2)


def test_zarr(tmp_path):
    pytest.importorskip("zarr")
    written = write(tmp_path / "a.nc", np.arange(4.0))
    written.to_zarr(tmp_path / "a.zarr")
    xr.testing.assert_equal(open_dataset(tmp_path / "a.zarr").load(), written)


def test_errors_are_one_clear_line(tmp_path, monkeypatch):
    write(tmp_path / "good.nc", np.arange(4.0))
    write(tmp_path / "back.nc", [0.0, 2.0, 1.0])
    write(tmp_path / "twice.nc", np.array(["2020-01-01", "2020-01-02", "2020-01-02"], dtype="M8[ns]"))
    (tmp_path / "text.nc").write_text("not a netCDF file")
    (tmp_path / "store.zarr").mkdir()
    monkeypatch.setitem(sys.modules, "zarr", None)
    for name, variables, message in [
        ("none.nc", None, "no such file; shipped samples are florence"),
        ("good.nc", ["rian"], "no variable 'rian'; it has .*did you mean 'rain'"),
        ("back.nc", None, "time does not increase: 2.0 at index 1 is followed by 1.0"),
        ("twice.nc", None, "time does not increase: 2020-01-02.* at index 1"),
        ("text.nc", None, "not a readable netCDF file"),
        ("store.zarr", None, r"pip install 'assimilate-da\[zarr\]'"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            open_dataset(tmp_path / name, variables=variables)
        assert "\n" not in str(caught.value)


def test_florence_is_opened_afresh():
    first = florence()
    first.precipitation[0, 0, 0] = -1.0
    assert float(florence().precipitation[0, 0, 0]) == 0
