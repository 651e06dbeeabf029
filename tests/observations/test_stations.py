"""Stations on straight, periodic and curvilinear grids: exact where interpolation is exact, errors that name them."""

import numpy as np
import pytest
import torch

from dynamics import Coordinate, Field, Lorenz96, Space, florence_space
from observations import Stations
from observations.places import fractional_indices

PLANE = Space(Field("v", dims=("y", "x")), {"y": np.array([0.0, 1.0, 3.0, 7.0]), "x": np.arange(5.0)[::-1] * 2})


def sample(space, function):
    positions = space.positions()
    return function(*positions.T).reshape(space.event_shape)


def test_bilinear_is_exact_for_bilinear_fields():
    points = np.array([[0.4, 7.1], [2.0, 0.0], [6.9, 3.3], [3.0, 8.0], [7.0, 1.0]])
    x = sample(PLANE, lambda y, x: 1 + 2 * y - 3 * x + 0.5 * x * y)
    y, e = points.T
    expected = torch.from_numpy(1 + 2 * y - 3 * e + 0.5 * e * y)
    assert torch.allclose(Stations(PLANE, points, "bilinear")(x), expected, atol=1e-12)


def test_nearest_takes_the_nearest_cell():
    points = np.random.default_rng(0).uniform([0, 0], [7, 8], (40, 2))
    x = sample(PLANE, lambda y, x: 10 * y + x)
    seen = Stations(PLANE, points, "nearest")(x)
    cells = PLANE.positions()
    # In index space: the midpoints between neighbouring cells divide, as they do in distance along each axis.
    nearest = [cells[torch.argmin((cells[:, 0] - y).abs() * 1e3 + (cells[:, 1] - e).abs())] for y, e in points.tolist()]
    assert torch.allclose(seen, torch.stack([10 * cell[0] + cell[1] for cell in nearest]))


def test_ring_wraps():
    space = Lorenz96().space
    x = torch.arange(40.0, dtype=torch.float64).reshape(1, 40)
    seen = Stations(space, [[39.25], [-0.75], [79.0], [0.5]], "bilinear")(x)
    # Between site 39 and site 0 the value falls from 39 to 0.
    assert torch.allclose(seen, torch.tensor([39 * 0.75, 39 * 0.75, 39.0, 0.5]).double())
    assert Stations(space, [39.6], "nearest")(x).tolist() == [0.0]


def globe(longitudes):
    axes = {
        "lat": Coordinate(np.linspace(-80, 80, 9), ("lat",), "degrees_north"),
        "lon": Coordinate(np.array(longitudes), ("lon",), "degrees_east"),
    }
    return Space(Field("v", dims=("lat", "lon")), axes, periodic=("lon",) if len(longitudes) == 12 else ())


def test_longitudes_in_any_turn():
    space = globe(np.arange(0, 360, 30.0))
    x = sample(space, lambda lat, lon: torch.cos(torch.deg2rad(lon)))
    seen = Stations(space, [[0.0, -30.0], [0.0, 330.0], [0.0, 345.0], [5.0, -15.0]], "bilinear")(x)
    assert torch.allclose(seen[:2], seen[0].expand(2), atol=1e-12)
    assert torch.allclose(seen[2:], (x[0, 0, 0] + x[0, 0, 11]).expand(2) / 2, atol=1e-12)
    # A regional grid in -180..180 takes a station given in 0..360.
    region = globe(np.arange(-90, -30, 10.0))
    x = sample(region, lambda lat, lon: lon)
    assert Stations(region, [[0.0, 300.0]], "bilinear")(x).tolist() == pytest.approx([-60.0])


def test_curvilinear_grid_inverts_itself():
    space = florence_space()
    rng = np.random.default_rng(0)
    index = np.stack([rng.uniform(0, 117, 200), rng.uniform(0, 86, 200)], -1)
    low = np.minimum(index.astype(int), [116, 85])
    f = index - low
    centres = space.positions().numpy().reshape(118, 87, 2)
    points = sum(
        ((f[:, 0] if a else 1 - f[:, 0]) * (f[:, 1] if b else 1 - f[:, 1]))[:, None]
        * centres[low[:, 0] + a, low[:, 1] + b]
        for a in (0, 1)
        for b in (0, 1)
    )
    found = fractional_indices(space, points)
    # The test interpolates in degrees, the code on the tangent plane: over 4 km they differ by 4 km / 6371 km / 8.
    assert np.abs(found - index).max() < 2e-4
    # Latitude and longitude themselves are interpolated to 1e-3 of a cell (0.04 degrees).
    x = space.positions().mT.reshape(2, 1, 118, 87)
    seen = Stations(space, points, "bilinear")(x)
    assert torch.allclose(seen, torch.from_numpy(points).mT, atol=4e-5)
    # Nearest finds the cell with the smallest great-circle distance.
    nearest = Stations(space, points, "nearest")
    best = space.distance(torch.from_numpy(points), space.positions()).argmin(1)
    same = nearest.cells[:, 0] == best
    # On the cells' borders the two notions of nearest may differ; by no more than the skew of the cells.
    assert float(same.double().mean()) > 0.98


def test_points_by_name():
    space = florence_space()
    by_array = Stations(space, [[34.0, -78.0]])
    by_name = Stations(space, {"latitude": [34.0], "longitude": [-78.0]})
    assert torch.equal(by_array.cells, by_name.cells)
    assert torch.equal(by_name.positions, torch.tensor([[34.0, -78.0]]).double())
    with pytest.raises(ValueError, match=r"points have no 'lon'; they have \['lat'\]"):
        Stations(space, {"lat": [34.0]})
    with pytest.raises(ValueError, match=r"expected \(m, 2\), columns \('lat', 'lon'\)"):
        Stations(space, [34.0, -78.0])


@pytest.mark.parametrize(
    ("space", "point", "message"),
    [
        (PLANE, [3.0, 9.5], r"station KNC at y = 3, x = 9.5 lies outside the grid along 'x' \(1 such"),
        (PLANE, [-0.6, 3.0], "station KNC .* along 'y'"),
        (PLANE, [np.nan, 3.0], "station KNC has no finite position"),
        (florence_space(), [40.0, -78.0], "station KNC at lat = 40, lon = -78 lies outside"),
        (florence_space(), [34.0, 78.0], "station KNC .* lies outside"),
        (globe(np.arange(-90, -30, 10.0)), [0.0, 100.0], "station KNC .* along 'lon'"),
    ],
)
def test_stations_outside_are_named(space, point, message):
    inside = space.positions()[space.positions().shape[0] // 2].tolist()
    with pytest.raises(ValueError, match=message):
        Stations(space, [inside, point], names=["OK", "KNC"])


def test_half_a_cell_beyond_the_centres_belongs_to_the_domain():
    x = sample(PLANE, lambda y, x: y + x)
    seen = Stations(PLANE, [[-0.4, 8.9], [8.9, -0.9]], "bilinear")(x)
    assert seen.tolist() == [8.0, 7.0]


def test_no_data_cells():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0] = True
    space = Space(PLANE.fields, PLANE.coords, mask=mask)
    x = sample(space, lambda y, x: y)
    # Between a no-data row (y = 0) and a good one (y = 1) only the good one counts.
    assert Stations(space, [[0.5, 4.0]], "bilinear")(x).tolist() == [1.0]
    with pytest.raises(ValueError, match=r"station 1 at .* lies on no-data cells"):
        Stations(space, [[3.0, 4.0], [0.2, 4.0]], "nearest")


def test_channels():
    space = Space((Field("a", dims=("y", "x")), Field("b", dims=("y", "x"))), PLANE.coords)
    x = torch.randn(3, 2, 4, 5)
    points = [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    both, one = Stations(space, points), Stations(space, points, channels="b")
    assert both(x).shape == (3, 2, 3) and one(x).shape == (3, 3)
    assert torch.equal(both(x)[:, 1], one(x))
    assert both.positions.shape == (6, 2)


def test_a_list_of_cells_has_no_stations():
    axes = {
        "cell": 3,
        "lat": Coordinate(np.zeros(3), ("cell",), "degrees_north"),
        "lon": Coordinate(np.arange(3.0), ("cell",), "degrees_east"),
    }
    with pytest.raises(ValueError, match="two horizontal dimensions"):
        Stations(Space(Field("v", dims=("cell",)), axes), [[0.0, 1.0]])
