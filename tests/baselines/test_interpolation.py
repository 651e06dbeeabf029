import math

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from assimilate.baselines.base import Baseline
from assimilate.baselines.interpolation import LinearInterpolation, NearestInterpolation
from dynamics import CapabilityError, Coordinate, Field, Space, florence_space
from observations import GaussianNoise, Likelihood, Mask, Matrix, Observation, Stations, random_mask


def plane(rows=9, columns=12, periodic=()):
    coords = {"y": Coordinate(2.0 * np.arange(rows), ("y",)), "x": Coordinate(3.0 * np.arange(columns), ("x",))}
    return Space((Field("r", "mm", ("y", "x")),), coords, periodic=periodic)


def observe(operator, field):
    return Observation(Likelihood(operator, GaussianNoise(std=0.1)), operator(field))


def linear_field(space):
    place = space.positions()
    scale = place.max(0).values.clamp_min(1)
    return (1.0 + (place / scale) @ torch.arange(2.0, 2.0 + place.shape[1], dtype=torch.float64)).reshape(
        space.event_shape
    )


@pytest.mark.parametrize("space", [plane(), florence_space()], ids=["plane", "sphere"])
def test_linear_fields_are_exact_inside_the_hull(space):
    field = linear_field(space)
    operator = random_mask(space, 0.2, seed=3)
    estimate = LinearInterpolation(space).estimate(observe(operator, field[None, None]), 0.0)
    assert estimate.std is None and estimate.mean.shape == (1, *space.event_shape)
    hull = ConvexHull(operator.positions.numpy())
    cells = space.positions().numpy()
    inside = (cells @ hull.equations[:, :-1].T + hull.equations[:, -1] <= -1e-9).all(1)
    assert 0.3 < inside.mean() < 1
    error = (estimate.mean - field).abs().flatten().numpy()
    assert error[inside].max() < 1e-9
    assert error[~inside].max() > 1e-3


def test_outside_the_hull_is_the_nearest_value():
    space = plane()
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(1, 1, *space.event_shape, generator=generator, dtype=torch.float64)
    operator = Mask(space, torch.tensor([40, 42, 66]))
    seen = observe(operator, field)
    linear, nearest = (kind(space).estimate(seen, 0.0).mean for kind in (LinearInterpolation, NearestInterpolation))
    inside = torch.zeros(108, dtype=torch.bool)
    inside[[40, 41, 42, 53, 54, 66]] = True
    # Cells of the triangle (3, 4), (3, 6), (5, 6): corners, edges and (4, 5), (4, 6) of the grid of 12 columns.
    assert torch.equal(linear.flatten()[~inside], nearest.flatten()[~inside])
    assert set(nearest.unique().tolist()) == set(seen.y.flatten().tolist())
    torch.testing.assert_close(linear.flatten()[41], (field.flatten()[40] + field.flatten()[42]) / 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_places_without_a_triangle(count):
    space = plane()
    operator = Mask(space, torch.arange(count) + 30)
    seen = observe(operator, torch.arange(108.0).reshape(1, 1, 1, 9, 12))
    linear, nearest = (kind(space).estimate(seen, 0.0).mean for kind in (LinearInterpolation, NearestInterpolation))
    assert torch.equal(linear, nearest)


def test_around_a_ring():
    ring = Space((Field("x", "1", ("site",)),), {"site": Coordinate(np.arange(10.0), ("site",))}, periodic=("site",))
    operator = Mask(ring, torch.tensor([2, 6]))
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.1)), torch.tensor([0.0, 12.0], dtype=torch.float64))
    found = LinearInterpolation(ring).estimate(seen, 0.0).mean
    # From 6 up to 12 = 2 + 10 it falls by 2 a cell.
    expected = torch.tensor([4.0, 2.0, 0.0, 3.0, 6.0, 9.0, 12.0, 10.0, 8.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected)
    near = NearestInterpolation(ring).estimate(seen, 0.0).mean.flatten()
    assert near[[8, 0, 1]].tolist()[1:] == [0.0, 0.0] and near[7] == 12.0


def test_a_torus_interpolates_across_the_seam():
    space = plane(periodic=("y", "x"))
    place = space.positions()
    angle = 2 * math.pi * place / torch.tensor([18.0, 36.0], dtype=torch.float64)
    field = (torch.cos(angle[:, 0]) + torch.sin(angle[:, 1])).reshape(1, 1, *space.event_shape)
    operator = Mask(space, torch.arange(0, 108, 2))
    error = LinearInterpolation(space).estimate(observe(operator, field), 0.0).mean - field[0]
    # Linear interpolation over cells of half a grid's spacing is off by at most h^2 |f''| / 8 in each direction.
    assert error.abs().max() < 2 * (2 * math.pi / 9 * 2) ** 2 / 8


def test_missing_values_and_batches():
    space = plane()
    field = torch.randn(3, 1, *space.event_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = random_mask(space, 0.3, seed=0)
    seen = observe(operator, field)
    seen.y[1, 0, 4] = math.nan
    seen.y[2] = math.nan
    for kind in (LinearInterpolation, NearestInterpolation):
        method = kind(space)
        assert isinstance(method, Baseline)
        mean = method.estimate(seen, 0.0).mean
        assert torch.isnan(mean[2]).all() and torch.isfinite(mean[:2]).all()
        kept = torch.arange(operator.obs_size) != 4
        fewer = Observation(Likelihood(Mask(space, operator.index[kept]), GaussianNoise(std=0.1)), seen.y[1:2, :, kept])
        torch.testing.assert_close(mean[1:2], kind(space).estimate(fewer, 0.0).mean)
        shared = Observation(seen.likelihood, seen.y[0, 0])
        torch.testing.assert_close(mean[:1], method.estimate(shared, 0.0).mean)
        assert torch.isnan(method.estimate(None, 0.0).mean).all()


def test_several_fields_are_each_interpolated_alone():
    one = plane()
    two = Space((*one.fields, Field("other", "K", ("y", "x"))), one.coords)
    values = torch.randn(2, 1, 40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    index = torch.cat([torch.arange(0, 108, 5), 108 + torch.arange(2, 90, 5)])
    seen = Observation(Likelihood(Mask(two, index), GaussianNoise(std=0.1)), values)
    for kind in (LinearInterpolation, NearestInterpolation):
        both = kind(two).estimate(seen, 0.0).mean
        for channel, part in enumerate((index < 108, index >= 108)):
            alone = Observation(Likelihood(Mask(one, index[part] % 108), GaussianNoise(std=0.1)), values[..., part])
            torch.testing.assert_close(both[:, channel], kind(one).estimate(alone, 0.0).mean[:, 0])


def test_values_at_one_place_are_averaged():
    space = plane()
    points = np.array([[0.0, 0.0], [0.0, 0.0], [16.0, 0.0], [0.0, 33.0], [16.0, 33.0]])
    operator = Stations(space, points, method="nearest")
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.1)), torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]))
    for kind in (LinearInterpolation, NearestInterpolation):
        torch.testing.assert_close(kind(space).estimate(seen, 0.0).mean, torch.full((1, 1, 9, 12), 2.0))


def test_no_data_cells_and_refusals():
    mask = np.zeros((9, 12), dtype=bool)
    mask[0, :3] = True
    space = Space(plane().fields, plane().coords, mask=mask)
    operator = Mask(space, torch.tensor([30, 70, 90, 100]))
    seen = Observation(Likelihood(operator, GaussianNoise(std=0.1)), torch.ones(4))
    mean = LinearInterpolation(space).estimate(seen, 0.0).mean
    assert (mean[0, 0, 0, :3] == 0).all() and (mean[0, 0, 1:] == 1).all()
    nowhere = Likelihood(Matrix(space, torch.ones(1, 108)), GaussianNoise(std=1.0))
    with pytest.raises(CapabilityError, match="positions"):
        NearestInterpolation(space).estimate(Observation(nowhere, torch.zeros(1)), 0.0)
    with pytest.raises(CapabilityError, match="fields on a grid"):
        LinearInterpolation(Space.scalars("x", "y"))
