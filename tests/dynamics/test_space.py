"""Space: Dataset to tensor and back, labels, mismatches by name, distances."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from dynamics import Coordinate, Field, Identity, LogOnePlus, Lorenz63, Space, SpaceMismatch, florence_space
from dynamics.labels import is_latitude, leading_dims, same_units


def atmosphere():
    """Two variables, one with levels, on a latitude-longitude grid, an ensemble under another name, odd order."""
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "t": (("lon", "level", "number", "time", "lat"), rng.normal(280, 5, (6, 2, 3, 4, 5)), {"units": "K"}),
            "rain": (("time", "lat", "lon", "number"), rng.gamma(1, 2, (4, 5, 6, 3)), {"units": "mm", "note": "sum"}),
            "unused": (("station",), np.full(7, np.nan)),
        },
        coords={
            "lat": ("lat", np.linspace(-60, 60, 5), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0, 360, 60.0), {"units": "degrees_east"}),
            "level": ("level", [850, 500], {"units": "hPa"}),
            "time": ("time", np.arange("2020-01-01", "2020-01-05", dtype="M8[D]").astype("M8[ns]")),
        },
        attrs={"title": "made up"},
    )


def atmosphere_space():
    transforms = {"rain": LogOnePlus(0.5)}
    return Space.from_dataset(atmosphere(), variables=["rain", "t"], transforms=transforms, periodic=("lon",))


def test_layout():
    ds, space = atmosphere(), atmosphere_space()
    assert space.grid == ("lat", "lon") and space.event_shape == (3, 5, 6)
    assert space.channels == ("rain", "t[850]", "t[500]")
    x = space.to_tensor(ds, dtype=torch.float64)
    assert x.shape == (3, 4, 3, 5, 6)  # member, time, channel, lat, lon
    picked = ds.isel(number=2, time=1, lat=3, lon=4)
    assert float(x[2, 1, 0, 3, 4]) == math.log1p(float(picked.rain) / 0.5)
    assert float(x[2, 1, 2, 3, 4]) == float(picked.t.sel(level=500))


def test_round_trip_of_dataset():
    ds, space = atmosphere(), atmosphere_space()
    x = space.to_tensor(ds, dtype=torch.float64)
    back = space.to_dataset(x, coords={"time": ds.time}, attrs=ds.attrs)
    assert back.member.attrs["standard_name"] == "realization"
    assert back.attrs == ds.attrs and back.rain.attrs == ds.rain.attrs and back.t.attrs == ds.t.attrs
    renamed = back.rename(member="number").drop_vars("number")
    # log and exp round once each: 1e-15 relative, a little more near 0.
    xr.testing.assert_allclose(renamed.transpose(*ds.t.dims), ds[["rain", "t"]].transpose(*ds.t.dims), rtol=1e-13)
    assert torch.allclose(space.to_tensor(back, dtype=torch.float64), x, rtol=1e-13, atol=1e-14)


@given(
    experiments=st.integers(0, 2),
    members=st.integers(0, 3),
    times=st.integers(0, 2),
    grid=st.lists(st.integers(1, 4), max_size=3),
    channels=st.integers(1, 3),
    log=st.booleans(),
    masked=st.booleans(),
    data=st.data(),
)
def test_round_trip_of_any_tensor(experiments, members, times, grid, channels, log, masked, data):
    dims = tuple(f"d{i}" for i in range(len(grid)))
    transform = LogOnePlus(2.0) if log else Identity()
    fields = tuple(Field(f"v{i}", "m", dims, transform=transform) for i in range(channels))
    mask = np.arange(math.prod(grid)).reshape(grid) % 2 == 1 if masked else None
    space = Space(fields, {dim: np.arange(size) * 0.5 for dim, size in zip(dims, grid, strict=True)}, mask=mask)
    sizes = {"experiment": experiments, "member": members, "time": times}
    lead = {name: size for name, size in sizes.items() if size}
    x = torch.rand(*lead.values(), *space.event_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if space.mask is not None:
        x = x.masked_fill(torch.from_numpy(space.mask.copy()), 0.0)
    ds = space.to_dataset(x, dims=tuple(lead))
    order = data.draw(st.permutations([*lead, *dims]))
    assert torch.allclose(space.to_tensor(ds.transpose(*order), dtype=torch.float64), x, rtol=1e-14, atol=1e-15)
    again = Space.from_json(space.to_json())
    assert again == space and again.event_shape == space.event_shape
    # A Space rebuilt from the data reads the same numbers.
    built = Space.from_dataset(ds, transforms={entry.name: transform for entry in fields})
    assert torch.equal(built.to_tensor(ds), space.to_tensor(ds))


def test_float32_is_read_as_it_is():
    space = florence_space()
    assert space.event_shape == (1, 118, 87)
    x = torch.rand(2, 1, 118, 87)
    back = space.to_tensor(space.to_dataset(x, dims=("time",)))
    assert float((back - x).abs().max()) < 4 * torch.finfo(torch.float32).eps


def test_scalar_fields():
    space = Lorenz63().space
    assert space.event_shape == (3,) and space.grid_shape == () and space.positions().shape == (1, 0)
    x = torch.randn(4, 2, 3)
    ds = space.to_dataset(x)
    assert ds.x.dims == ("member", "time") and torch.equal(space.to_tensor(ds), x)
    assert float(space.distance(space.positions(), space.positions())) == 0


def test_leading_dims_by_any_name():
    space = Space.scalars("x")
    for name in ("member", "number", "realization", "ensemble"):
        ds = xr.Dataset({"x": ((name, "time"), np.zeros((3, 2)), {"units": "1"})})
        assert space.to_tensor(ds).shape == (3, 2, 1)
    odd = xr.Dataset({"x": (("run",), np.zeros(3))}, {"run": ("run", [0, 1, 2], {"standard_name": "realization"})})
    assert leading_dims(odd) == {"member": "run"}
    assert space.to_tensor(odd).shape == (3, 1)
    with pytest.raises(SpaceMismatch, match="'other', which this Space has not"):
        space.to_tensor(xr.Dataset({"x": (("other",), np.zeros(3))}))


def test_gradients_and_memory_stay_apart():
    space = Space.scalars("x")
    x = torch.ones(2, 1, requires_grad=True)
    ds = space.to_dataset(x, dims=("member",))
    with torch.no_grad():
        x += 1
    assert float(ds.x.max()) == 1
    tensor = space.to_tensor(ds)
    tensor += 5
    assert float(ds.x.max()) == 1


MISMATCHES = {
    "units": (lambda ds: ds.assign(t=ds.t.assign_attrs(units="degC")), "'t' is in 'degC'; this Space expects 'K'"),
    "variable": (lambda ds: ds.rename(rain="rian"), "no variable 'rain'.*did you mean 'rian'"),
    "size": (lambda ds: ds.isel(lat=slice(1, None)), "'lat' has size 4; this Space expects 5"),
    "values": (
        lambda ds: ds.assign_coords(lon=("lon", np.arange(0, 360, 60.0) + 1.0)),
        "'lon' differs at index 0: 1.0 was given, 0.0",
    ),
    "order": (lambda ds: ds.isel(lat=slice(None, None, -1)), "same in another order.*sortby"),
    "dimension": (lambda ds: ds.rename(lat="y"), "'rain' has no dimension 'lat'"),
    "coordinate units": (
        lambda ds: ds.assign_coords(level=("level", [850, 500], {"units": "m"})),
        "'level' is in 'm'; this Space expects 'hPa'",
    ),
    "missing value": (lambda ds: ds.where(ds.lat < 50), r"'rain' is nan at number=0, time=0, cell \(4, 0\)"),
    "uneven leading dims": (lambda ds: ds.assign(rain=ds.rain.isel(number=0)), "'rain' has no dimension 'number'"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_mismatches_are_named(name):
    spoil, message = MISMATCHES[name]
    with pytest.raises(SpaceMismatch, match=message):
        atmosphere_space().to_tensor(spoil(atmosphere()))


def test_tensor_mismatches_are_named():
    space = atmosphere_space()
    with pytest.raises(SpaceMismatch, match=r"expected it to end in the event \(3, 5, 6\)"):
        space.to_dataset(torch.zeros(2, 3, 6, 5))
    with pytest.raises(SpaceMismatch, match="say which"):
        space.to_dataset(torch.zeros(2, 3, 5, 6))
    with pytest.raises(SpaceMismatch, match=r"names 1"):
        space.to_dataset(torch.zeros(2, 2, 3, 5, 6), dims=("time",))


def test_spellings_of_units():
    assert same_units("kg m-2", "mm") and same_units("", "1") and same_units("m/s", "m s-1")
    assert not same_units("m", "mm") and not same_units("K", "degC")
    assert is_latitude({"units": "degrees_north"}) and not is_latitude({"units": "degrees"})


def test_no_data_cells():
    values = np.arange(24, dtype=float).reshape(2, 3, 4)
    values[:, 1, 2] = np.nan
    ds = xr.Dataset({"sst": (("time", "y", "x"), values, {"units": "K"})})
    space = Space.from_dataset(ds)
    assert int(space.mask.sum()) == 1 and bool(space.mask[0, 1, 2])
    x = space.to_tensor(ds)
    assert float(x[0, 0, 1, 2]) == 0 and bool(torch.isfinite(x).all())
    back = space.to_dataset(x + 1, dims=("time",))
    assert np.array_equal(np.isnan(back.sst), np.isnan(ds.sst))
    assert "y" not in back.coords  # the data had none
    # Missing at one time only is not a no-data cell.
    values[0, 0, 0] = np.nan
    patchy = ds.assign(sst=(("time", "y", "x"), values, {"units": "K"}))
    assert int(Space.from_dataset(patchy).mask.sum()) == 1
    with pytest.raises(SpaceMismatch, match=r"nan at time=0, cell \(0, 0\) \(1 such values\)"):
        space.to_tensor(patchy)
    assert int(Space.from_dataset(patchy, mask="first").mask.sum()) == 2
    with pytest.raises(SpaceMismatch, match="is inf"):
        space.to_tensor(ds.where(ds.sst != 3, np.inf).fillna({"sst": 0.0}))


def test_only_what_is_asked_is_read():
    import dask.array as da

    def explode(block):
        raise AssertionError("read a variable that nobody asked for")

    chunks = da.ones((4, 3), chunks=(1, 3))
    ds = xr.Dataset(
        {"a": (("time", "x"), chunks), "b": (("time", "x"), chunks.map_blocks(explode, dtype=float, meta=np.ones(0)))}
    )
    space = Space.from_dataset(ds, variables=["a"])
    assert space.to_tensor(ds.isel(time=slice(0, 2))).shape == (2, 1, 3)


def test_great_circles():
    space = atmosphere_space()
    assert space.position_names == ("lat", "lon")
    places = torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 17.0], [0.0, 359.0], [51.5, -0.1], [48.9, 2.4]]).double()
    d = space.distance(places, places)
    quarter = math.pi / 2 * 6371.0088
    assert float(d[0, 1]) == pytest.approx(quarter, rel=1e-12)
    assert float(d[1, 2]) == pytest.approx(quarter, rel=1e-12)
    assert float(d[0, 3]) == pytest.approx(quarter / 90, rel=1e-9)  # across the meridian of Greenwich
    assert float(d[4, 5]) == pytest.approx(341, abs=3)  # London to Paris
    assert torch.allclose(d, d.T) and float(d.diagonal().abs().max()) == 0


def test_distance_on_a_ring_and_a_plane():
    ring = Space(Field("x", dims=("i",)), {"i": np.arange(10) * 2.0}, periodic=("i",))
    d = ring.distance(ring.positions(), ring.positions())
    assert float(d[0, 9]) == 2 and float(d[0, 5]) == 10 and float(d.max()) == 10
    plane = Space(Field("x", dims=("y", "x")), {"y": [0.0, 3.0], "x": [0.0, 4.0, 8.0]})
    assert plane.positions().tolist()[4] == [3.0, 4.0]
    assert float(plane.distance(plane.positions()[:1], plane.positions()[4:5])) == 5
    mixed = Space(
        Field("x", dims=("y", "z")), {"y": Coordinate([0, 1], ("y",), "km"), "z": Coordinate([0, 1], ("z",), "hPa")}
    )
    with pytest.raises(SpaceMismatch, match="different units and no common distance"):
        mixed.distance(mixed.positions(), mixed.positions())


def test_curvilinear_grid():
    space = florence_space()
    assert space.spherical == ("lat", "lon") and space.position_names == ("lat", "lon")
    p = space.positions()
    # Neighbours of the 4 km grid are 3.9 to 4.2 km apart here.
    steps = torch.cat([space.distance(p[i : i + 1], p[[i + 1, i + 87]])[0] for i in (0, 3000, 8000)])
    assert bool(((steps > 3.9) & (steps < 4.2)).all())
    weights = space.cell_weights()
    assert float(weights.mean()) == pytest.approx(1, abs=1e-12)
    # The area of a cell is the product of its sides to 1 % on this nearly conformal grid.
    sides = space.distance(p[3000:3001], p[[3001, 3087]])[0].prod()
    other = space.distance(p[8000:8001], p[[8001, 8087]])[0].prod()
    ratio = float(weights.flatten()[3000] / weights.flatten()[8000])
    assert ratio == pytest.approx(float(sides / other), rel=1e-2)


def test_latitude_weights():
    weights = atmosphere_space().cell_weights()
    expected = np.cos(np.deg2rad(np.linspace(-60, 60, 5)))
    assert np.allclose(weights[:, 0], expected / expected.mean()) and np.allclose(weights[:, 0], weights[:, 5])


def test_a_users_transform_is_saved_by_name():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Root:
        power: float = 0.5

        def forward(self, x):
            return x**self.power

        def inverse(self, u):
            return u ** (1 / self.power)

    space = Space(Field("q", transform=Root(0.25)))
    with pytest.raises(ValueError, match="unknown transform 'Root'"):
        Space.from_json(space.to_json())
    assert Space.from_json(space.to_json(), transforms={"Root": Root}) == space


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Space(Field("x", dims=("i",))), "dimension 'i' has no coordinate"),
        (lambda: Space((Field("x"), Field("x"))), "different names"),
        (lambda: Space(Field("x", dims=("i",)), {"i": [0, 1, 3]}, periodic=("i",)), "evenly spaced"),
        (lambda: Space(Field("x", dims=("i",)), {"i": 3}, mask=np.ones(4, bool)), r"mask has shape \(4,\)"),
        (
            lambda: Space((Field("a", dims=("i", "j")), Field("b", dims=("j", "i"))), {"i": 2, "j": 2}),
            "the grid of this",
        ),
    ],
)
def test_bad_spaces_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
