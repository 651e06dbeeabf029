"""Local search against the distances of all to all, on planes, rings, spheres, curvilinear grids and lists of cells."""

import math

import numpy as np
import pytest
import torch

from assimilate.filters.localization import gaspari_cohn
from assimilate.filters.neighbours import Neighbours
from dynamics import Coordinate, Field, Space, SpaceMismatch


def degrees(values, dims, kind):
    units = {"latitude": "degrees_north", "longitude": "degrees_east"}[kind]
    return Coordinate(np.asarray(values, dtype=float), dims, units=units, standard_name=kind)


def plane(periodic=()):
    sides = {"y": Coordinate(np.arange(-3.0, 8.0), ("y",)), "x": Coordinate(np.arange(5.0, 15.0, 0.5), ("x",))}
    return Space(Field("a", "1", ("y", "x")), sides, periodic=periodic)


def globe():
    coords = {
        "lat": degrees(np.linspace(-85, 85, 11), ("lat",), "latitude"),
        "lon": degrees(np.arange(0, 360, 15), ("lon",), "longitude"),
    }
    return Space(Field("a", "1", ("lat", "lon")), coords, periodic=("lon",))


def curvilinear():
    i, j = np.meshgrid(np.arange(9.0), np.arange(13.0), indexing="ij")
    latitude = degrees(60 + 3 * i - 0.5 * j, ("i", "j"), "latitude")
    coords = {"i": 9, "j": 13, "lat": latitude, "lon": degrees(170 + 4 * j + i, ("i", "j"), "longitude")}
    return Space(Field("a", "1", ("i", "j")), coords)


def listed():
    g = np.random.default_rng(0)
    latitude = degrees(g.uniform(-90, 90, 150), ("cell",), "latitude")
    coords = {"cell": 150, "lat": latitude, "lon": degrees(g.uniform(-180, 180, 150), ("cell",), "longitude")}
    return Space(Field("a", "1", ("cell",)), coords)


def ring():
    return Space(Field("a", "1", ("x",)), {"x": Coordinate(np.arange(40.0), ("x",))}, periodic=("x",))


CASES = {
    "plane": (plane(), 1.3),
    "cylinder": (plane(("x",)), 1.3),
    "torus": (plane(("y", "x")), 2.0),
    "ring": (ring(), 3.0),
    "wide ring": (ring(), 9.9),
    "ring all round": (ring(), 30.0),
    "globe": (globe(), 1200.0),
    "globe far": (globe(), 9000.0),
    "globe all round": (globe(), 12000.0),
    "curvilinear": (curvilinear(), 500.0),
    "list": (listed(), 1500.0),
    "infinite": (plane(), math.inf),
}


def places_of(space, count=25, seed=0):
    """Some cells, and places beside and outside of the grid."""
    g = torch.Generator().manual_seed(seed)
    cells = space.positions()
    chosen = cells[torch.randperm(cells.shape[0], generator=g)[:count]]
    shifted = chosen + torch.rand(chosen.shape, generator=g, dtype=torch.float64)
    low, high = cells.min(0).values, cells.max(0).values
    corners = torch.stack([low - 1e-18, high, high + 0.25])
    if space.spherical is not None:
        corners[:, 0] = corners[:, 0].clamp(-90, 90)
        shifted[:, 0] = shifted[:, 0].clamp(-90, 90)
    return torch.cat([chosen, shifted, corners])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_tiles_have_every_neighbour(case, size):
    space, radius = CASES[case]
    places = places_of(space)
    expected = gaspari_cohn(space.distance(space.positions(), places), radius)
    neighbours = Neighbours(space, places, radius)
    like = torch.zeros(1, dtype=torch.float64)
    found, seen = torch.zeros_like(expected), []
    for tile in neighbours.tiles(size):
        assert 0 < tile.cells.numel() <= size
        near = neighbours.neighbourhood(tile, like)
        found[near.cells[:, None], near.values] = near.taper
        seen.append(near.cells)
        assert (near.taper > 0).any(0).all()
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(expected.shape[0]))
    # To rounding: vector instructions treat the ends of a row differently.
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    support = space.distance(space.positions(), places) <= 2 * radius * (1 + 2e-9)
    assert (expected > 0).sum(1).max() <= neighbours.count(10_000) <= support.sum(1).max()


@pytest.mark.parametrize("case", CASES)
def test_reached(case):
    space, radius = CASES[case]
    places = places_of(space)
    near = gaspari_cohn(space.distance(space.positions(), places), radius) > 0
    observed = torch.rand(4, places.shape[0], generator=torch.Generator().manual_seed(1)) < 0.15
    observed[1], observed[2] = True, False
    found = Neighbours(space, places, radius).reached(observed)
    assert torch.equal(found, (observed[:, None] & near).any(-1))


def test_only_some_cells():
    space, radius = CASES["torus"]
    cells = torch.arange(0, 220, 3)
    neighbours = Neighbours(space, places_of(space), radius)
    tiles = neighbours.tiles(10, cells)
    assert torch.equal(torch.cat([tile.cells for tile in tiles]).sort().values, cells)


def test_tiles_are_compact_and_the_search_is_local():
    """Candidates grow with the tile's neighbourhood, not with the domain."""
    radius, size = 2.0, 64

    def candidates(cells):
        sides = {name: Coordinate(np.arange(float(cells)), (name,)) for name in ("y", "x")}
        space = Space(Field("a", "1", ("y", "x")), sides, periodic=("y", "x"))
        tiles = Neighbours(space, space.positions(), radius).tiles(size)
        return max(tile.values.numel() for tile in tiles)

    # 8 x 8 cells: corners 3.5 sqrt(2) from the middle, and 4 more cells of support.
    bound = math.pi * (3.5 * math.sqrt(2) + 4 + 1) ** 2
    assert candidates(32) <= bound and candidates(64) <= bound


def test_places_of_another_width_are_refused():
    with pytest.raises(SpaceMismatch, match="columns"):
        Neighbours(plane(), torch.zeros(3, 1, dtype=torch.float64), 1.0)
