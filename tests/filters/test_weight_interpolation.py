"""Interpolated weights: closed forms of the multilinear factors, exactness at corners, order of error."""

import math

import numpy as np
import pytest
import torch

from assimilate.filters import local
from assimilate.filters.ensemble import ETKF
from assimilate.filters.local import LETKF
from assimilate.filters.weight_interpolation import CoarseGrid, apply_interpolated, box_pieces
from dynamics import CapabilityError, Coordinate, Field, LinearGaussian, Space, Streams
from observations import GaussianNoise, Likelihood, Mask, Observation
from tests.filters.at_rest import Still

N = 5


def plane(ny, nx, periodic=(), spacing=1.0):
    sides = {"y": Coordinate(spacing * np.arange(ny), ("y",)), "x": Coordinate(spacing * np.arange(nx), ("x",))}
    return Space((Field("a", "1", ("y", "x")), Field("b", "1", ("y", "x"))), sides, periodic=periodic)


def analyse(method, members, observation):
    return method.step(method.init(members), observation, 0.0, rng=Streams(0, *members.shape[:2]))[0].members


def problem(space, every=3, dtype=torch.float64, experiments=2):
    g = torch.Generator().manual_seed(0)
    members = torch.randn(experiments, N, *space.event_shape, generator=g, dtype=dtype)
    index = torch.arange(0, math.prod(space.grid_shape), every)
    y = torch.randn(experiments, 1, index.numel(), generator=g, dtype=dtype)
    y[0, 0, :2] = math.nan
    return members, Observation(Likelihood(Mask(space, index), GaussianNoise(std=0.5)), y)


@pytest.mark.parametrize("sizes", [(7,), (9,), (1,), (2,), (7, 10), (6, 4, 5)])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("closed", [False, True])
def test_the_factors_interpolate_linearly(sizes, stride, closed):
    grid = CoarseGrid(sizes, stride, (closed,) * len(sizes))
    boxes = grid.boxes
    real = boxes[boxes >= 0]
    # Every cell is in one box.
    assert torch.equal(real.sort().values, torch.arange(math.prod(sizes)))
    places = torch.stack(torch.meshgrid(*map(torch.arange, sizes), indexing="ij"), -1).reshape(-1, len(sizes))
    at = places[grid.cells].double()
    total = torch.zeros(*boxes.shape, len(sizes), dtype=torch.float64)
    weight = torch.zeros(boxes.shape, dtype=torch.float64)
    for picked, factor in grid.corners:
        weight += factor
        corner = at[picked]
        if closed:
            corner = torch.where(corner < at, corner + torch.tensor(sizes), corner)
            alone = torch.tensor([size <= stride for size in sizes])
            corner = torch.where(alone & (corner == at), at, corner)
        total += factor[..., None] * corner[:, None]
        assert (factor[boxes >= 0] >= 0).all() and (factor[boxes >= 0] <= 1).all()
    torch.testing.assert_close(weight, torch.ones_like(weight))
    if not (closed and min(sizes) <= stride):
        # Coordinates themselves are linear and come back.
        torch.testing.assert_close(total[boxes >= 0], places[real].double())


def test_increments_against_interpolated_matrices():
    grid = CoarseGrid((7, 9), 3, (False, True))
    g = torch.Generator().manual_seed(0)
    k = grid.cells.numel()
    changes = torch.randn(2, k, N, N, generator=g, dtype=torch.float64)
    anomalies = torch.randn(2, N, 2, 63, generator=g, dtype=torch.float64)
    found = torch.full_like(anomalies, torch.nan)
    for piece in box_pieces(grid, 20):
        cells, increments = apply_interpolated(grid, changes, anomalies, piece)
        found[..., cells] = increments
    rows, columns = torch.tensor([0, 3, 6]), torch.tensor([0, 3, 6])
    assert torch.equal(grid.cells, (rows[:, None] * 9 + columns).flatten())
    coarse = changes.reshape(2, 3, 3, N, N)
    for y in range(7):
        for x in range(9):
            (j, v), (i, u) = (min(y // 3, 1), y / 3 - min(y // 3, 1)), (x // 3, x % 3 / 3)
            matrix = (1 - v) * ((1 - u) * coarse[:, j, i] + u * coarse[:, j, (i + 1) % 3])
            matrix = matrix + v * ((1 - u) * coarse[:, j + 1, i] + u * coarse[:, j + 1, (i + 1) % 3])
            expected = torch.einsum("enk,ekc->enc", matrix, anomalies[..., y * 9 + x])
            torch.testing.assert_close(found[..., y * 9 + x], expected)


def test_weights_that_are_the_same_everywhere_stay_so():
    """Infinite radius: the weights are those of the ETKF in every cell, whatever the stride."""
    space = plane(7, 10, ("x",))
    members, seen = problem(space)
    expected = analyse(ETKF(Still(space)), members, seen)
    torch.testing.assert_close(analyse(LETKF(Still(space), math.inf, interpolation=4), members, seen), expected)


def test_corners_have_the_analysis_without_interpolation():
    space = plane(8, 11, ("y",))
    members, seen = problem(space)
    whole = analyse(LETKF(Still(space), 2.5), members, seen).flatten(3)
    method = LETKF(Still(space), 2.5, interpolation=3)
    found = analyse(method, members, seen).flatten(3)
    corners = method._coarse.cells
    torch.testing.assert_close(found[..., corners], whole[..., corners])
    assert (found - whole).abs().max() > 1e-3


def test_the_error_is_of_second_order():
    """Gaspari-Cohn weights are smooth: halving the stride quarters the error."""
    ring = Still(Space(Field("a", "1", ("x",)), {"x": Coordinate(np.arange(96.0), ("x",))}, periodic=("x",)))
    g = torch.Generator().manual_seed(0)
    # The same anomalies in every cell, so that the increments vary as the weights do; the support is half the ring.
    members = torch.randn(1, N, 1, 1, generator=g, dtype=torch.float64).expand(1, N, 1, 96).clone()
    index = torch.arange(0, 96, 17)
    y = torch.linspace(-2, 2, index.numel(), dtype=torch.float64)
    seen = Observation(Likelihood(Mask(ring.space, index), GaussianNoise(std=1.0)), y)
    whole = analyse(LETKF(ring, 24.0), members, seen)
    errors = [
        (analyse(LETKF(ring, 24.0, interpolation=stride), members, seen) - whole).square().mean().sqrt()
        for stride in (2, 4)
    ]
    # Of second differences f'': rms of 0, 1/2 against that of 0, 3/2, 2, 3/2 gives 4.12.
    assert 3.7 < errors[1] / errors[0] < 4.5
    assert errors[0] < 0.002 * (whole - members).square().mean().sqrt()


def test_cells_out_of_reach_stay():
    space = plane(12, 12)
    members, _ = problem(space)
    alone = Likelihood(Mask(space, torch.tensor([0])), GaussianNoise(std=0.5))
    seen = Observation(alone, torch.zeros(1, dtype=torch.float64))
    after = analyse(LETKF(Still(space), 1.5, interpolation=4, inflation=1.2), members, seen)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    assert torch.equal((after != members).any(0).any(0).any(0), y**2 + x**2 < 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_pieces_and_dtypes(dtype, monkeypatch):
    space = plane(9, 10, ("x",))
    members, seen = problem(space, dtype=dtype)
    method = LETKF(Still(space), 2.5, interpolation=2)
    together = analyse(method, members, seen)
    assert together.dtype == dtype
    for e in range(2):
        alone = analyse(method, members[e : e + 1], seen._replace(y=seen.y[e : e + 1]))
        torch.testing.assert_close(alone[0], together[e])
    monkeypatch.setattr(local, "CHUNK_NUMBERS", 3000)
    torch.testing.assert_close(analyse(LETKF(Still(space), 2.5, interpolation=2), members, seen), together)


def test_what_it_cannot_do():
    ring = LinearGaussian.ring(8)
    for stride in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"interpolation is .*stride"):
            LETKF(ring, 2.0, interpolation=stride)
    latitude = Coordinate(np.arange(9.0), ("cell",), units="degrees_north", standard_name="latitude")
    longitude = Coordinate(np.arange(9.0), ("cell",), units="degrees_east", standard_name="longitude")
    listed = Space(Field("a", "1", ("cell",)), {"cell": 9, "lat": latitude, "lon": longitude})
    with pytest.raises(CapabilityError, match=r"LETKF cannot interpolate weights .* list of cells"):
        LETKF(Still(listed), 100.0, interpolation=2)
    LETKF(Still(listed), 100.0)
    assert "radius=2.0, interpolation=3)" in repr(LETKF(ring, 2.0, interpolation=3)).replace("rotate=False, ", "")
