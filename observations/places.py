"""Where on a grid is a place? Fractional grid indices and interpolation weights of points.

A point's fractional index (i, j, ...) is integer at cell centres. On a rectilinear grid each coordinate is inverted
by itself; on a curvilinear one (2-D latitude and longitude) the local bilinear map of cell centres, projected on the
plane that touches the sphere at the point, is inverted by Newton's method from the nearest cell.

A grid covers its cells, so the domain reaches half a cell beyond the outermost centres; there a bilinear value is
that of the edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from dynamics.geometry import unit_vectors
from dynamics.space import Space

_NEWTON_STEPS = 30
_MARGIN = 0.5 + 1e-6


class Corners(NamedTuple):
    """Cells and weights that make up the value at each point.

    Attributes:
        cells: flat indices of grid cells, `(m, k)`.
        weights: their weights, `(m, k)`, summing to 1.
    """

    cells: np.ndarray
    weights: np.ndarray


def point_array(space: Space, points: Any) -> np.ndarray:
    """Points as float64 `(m, n_dims)` with columns `Space.position_names`.

    Args:
        space: the grid.
        points: such an array or list, or a mapping (a dict or Dataset) from those names to `(m,)` values; "latitude",
            "lat", "longitude" and "lon" will do whatever the grid calls them.
    """
    if not space.grid:
        raise ValueError("stations need a grid; this Space has scalar fields only: use Select")
    if hasattr(points, "keys"):
        columns = {name: np.asarray(_column(space, points, name)) for name in space.position_names}
        for name, column in columns.items():
            if column.dtype.kind not in "fiu":
                raise ValueError(f"the {name!r} of the points holds {column.dtype}; expected numbers")
        return np.stack([column.astype(np.float64) for column in columns.values()], -1)
    array = np.asarray(points, dtype=np.float64)
    width = len(space.position_names)
    if array.ndim == 1 and width == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"points have shape {array.shape}; expected (m, {width}), columns {space.position_names}")
    return array


def fractional_indices(space: Space, points: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    """Fractional grid indices `(m, n_grid_dims)` of points `(m, n_dims)`.

    Raises:
        ValueError: a point is not finite or lies outside the domain; the message names the station.
    """
    labels = [str(i) for i in range(len(points))] if names is None else [str(name) for name in names]
    bad = ~np.isfinite(points).all(1)
    if bad.any():
        raise ValueError(f"station {labels[int(np.argmax(bad))]} has no finite position: {points[int(np.argmax(bad))]}")
    horizontal = {dim for name in space.spherical or () for dim in space.coords[name].dims}
    if len(horizontal) == 1:
        raise ValueError("stations need a grid with two horizontal dimensions; on a list of cells use Mask")
    curvilinear = space.spherical is not None and len(space.coords[space.spherical[0]].dims) == 2
    found = np.full((len(points), len(space.grid)), np.nan)
    rest = list(space.position_names)
    if curvilinear:
        assert space.spherical is not None
        dims = space.coords[space.spherical[0]].dims
        longitude = space.coords[space.spherical[1]]
        turned = longitude.numbers if longitude.dims == dims else longitude.numbers.T
        inverted = _invert_curvilinear(space.coords[space.spherical[0]].numbers, turned, points[:, :2])
        # A latitude beyond a pole is no place, though its unit vector is one: columns may have been exchanged.
        inverted[np.abs(points[:, 0]) > 90] = np.nan
        for axis, dim in enumerate(dims):
            found[:, space.grid.index(dim)] = inverted[:, axis]
        rest = rest[2:]
    for name in rest:
        coordinate = space.coords[name]
        column = points[:, space.position_names.index(name)]
        axis = space.grid.index(coordinate.dims[0])
        turn = 360.0 if coordinate.longitude else None
        found[:, axis] = _invert_axis(coordinate.numbers, column, name in space.periodic, turn)
    for axis, size in enumerate(space.grid_shape):
        closed = space.grid[axis] in space.periodic
        low, high = (-np.inf, np.inf) if closed else (-_MARGIN, size - 1 + _MARGIN)
        outside = ~((found[:, axis] >= low) & (found[:, axis] <= high))
        if outside.any():
            first = int(np.argmax(outside))
            where = ", ".join(f"{n} = {v:g}" for n, v in zip(space.position_names, points[first], strict=True))
            raise ValueError(
                f"station {labels[first]} at {where} lies outside the grid along {space.grid[axis]!r} "
                f"({int(outside.sum())} such stations); drop it or enlarge the grid"
            )
    return found


def corners(space: Space, indices: np.ndarray, method: str) -> Corners:
    """Cells and weights for fractional indices `(m, n_grid_dims)`; method "nearest" or "bilinear"."""
    if method not in ("nearest", "bilinear"):
        raise ValueError(f"method={method!r}; expected 'nearest' or 'bilinear'")
    shape = np.array(space.grid_shape)
    closed = np.array([dim in space.periodic for dim in space.grid])
    if method == "nearest":
        cell = np.floor(indices + 0.5).astype(np.int64)
        cell = np.where(closed, cell % shape, np.clip(cell, 0, shape - 1))
        return Corners(np.ravel_multi_index(tuple(cell.T), space.grid_shape)[:, None], np.ones((len(indices), 1)))
    inside = np.where(closed, indices, np.clip(indices, 0, shape - 1))
    low = np.floor(inside).astype(np.int64)
    low = np.where(closed, low, np.clip(low, 0, np.maximum(shape - 2, 0)))
    fraction = inside - low
    cells, weights = [], []
    for corner in product((0, 1), repeat=len(shape)):
        cell = low + np.array(corner)
        cell = np.where(closed, cell % shape, np.clip(cell, 0, shape - 1))
        cells.append(np.ravel_multi_index(tuple(cell.T), space.grid_shape))
        weights.append(np.where(np.array(corner) == 1, fraction, 1 - fraction).prod(1))
    return Corners(np.stack(cells, -1), np.stack(weights, -1))


def _column(space: Space, points: Mapping[str, Any], name: str) -> Any:
    coordinate = space.coords[name]
    aliases = [name]
    aliases += ["latitude", "lat"] * coordinate.latitude + ["longitude", "lon"] * coordinate.longitude
    for alias in aliases:
        if alias in points:
            return points[alias]
    raise ValueError(f"points have no {name!r}; they have {list(points)}, expected {space.position_names}")


def _invert_axis(values: np.ndarray, column: np.ndarray, closed: bool, turn: float | None) -> np.ndarray:
    """Fractional index along a strictly monotonic coordinate; NaN far outside."""
    size = values.size
    steps = np.diff(values)
    if size > 1 and not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError("stations need a strictly monotonic coordinate; sort the grid first")
    if size == 1:
        return np.zeros_like(column)
    if turn is not None and not closed:
        # Bring a longitude to the turn in which the grid lies.
        middle = 0.5 * (values[0] + values[-1])
        column = column - turn * np.round((column - middle) / turn)
    if closed:
        return np.asarray((column - values[0]) / steps.mean())
    order = slice(None) if steps[0] > 0 else slice(None, None, -1)
    index = np.interp(column, values[order], np.arange(size)[order], left=np.nan, right=np.nan)
    first, last = (column - values[0]) / steps[0], size - 1 + (column - values[-1]) / steps[-1]
    return np.where(np.isnan(index), np.where(np.abs(first) < np.abs(last - (size - 1)), first, last), index)


def _invert_curvilinear(latitude: np.ndarray, longitude: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Fractional indices `(m, 2)` on a grid of 2-D cell centres in degrees; NaN where Newton's method fails."""
    grid = unit_vectors(torch.from_numpy(np.stack([latitude, longitude], -1)).reshape(-1, 2)).numpy()
    targets = unit_vectors(torch.from_numpy(points)).numpy()
    shape = latitude.shape
    nearest = np.array([int(np.argmax(grid @ target)) for target in targets], dtype=np.int64)
    grid = grid.reshape(*shape, 3)
    index = np.stack(np.unravel_index(nearest, shape), -1).astype(np.float64)
    # East and north at each target span the plane that touches the sphere there.
    east = np.cross(np.array([0.0, 0.0, 1.0]), targets)
    east = np.where(np.linalg.norm(east, axis=1, keepdims=True) < 1e-12, np.array([[1.0, 0.0, 0.0]]), east)
    east /= np.linalg.norm(east, axis=1, keepdims=True)
    axes = np.stack([east, np.cross(targets, east)], 1)
    limit = np.array(shape) - 2
    for _ in range(_NEWTON_STEPS):
        low = np.clip(np.floor(index), 0, limit).astype(np.int64)
        f = index - low
        quad = [[grid[low[:, 0] + a, low[:, 1] + b] for b in (0, 1)] for a in (0, 1)]
        flat = [[np.einsum("mkc,mc->mk", axes, corner) for corner in row] for row in quad]
        u, v = f[:, :1], f[:, 1:]
        value = (1 - u) * ((1 - v) * flat[0][0] + v * flat[0][1]) + u * ((1 - v) * flat[1][0] + v * flat[1][1])
        along_u = (1 - v) * (flat[1][0] - flat[0][0]) + v * (flat[1][1] - flat[0][1])
        along_v = (1 - u) * (flat[0][1] - flat[0][0]) + u * (flat[1][1] - flat[1][0])
        jacobian = np.stack([along_u, along_v], -1)
        step = np.linalg.solve(jacobian, -value[..., None])[..., 0]
        index = index + np.clip(step, -3.0, 3.0)
        # One cell past the margin is far enough to be called outside.
        index = np.clip(index, -2.0, np.array(shape) + 1.0)
    return np.where(np.abs(step).max(1, keepdims=True) < 1e-6, index, np.nan)
