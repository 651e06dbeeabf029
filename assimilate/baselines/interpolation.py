"""Linear and nearest interpolation of point values to the grid: no statistics, no model, no uncertainty.

Linear: barycentric in the Delaunay triangulation of the places (exact for linear fields), the nearest value outside
their convex hull. On a ring or torus the places are repeated around; on a sphere they are triangulated in (longitude
cosine of the mean latitude, latitude), which suits regional grids. Every field is made from its own values alone, and
the noise of the observations is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from assimilate.baselines.base import (
    Estimate,
    check_grid,
    experiments_of,
    patterns,
    without_no_data,
)
from assimilate.filters.base import Exactness
from assimilate.memo import Memo, content
from dynamics.space import Space
from observations.likelihood import Observation

CHUNK_NUMBERS = 4_000_000
"""How many distances are held at a time."""
_INSIDE = 1e-9
"""How far (in barycentric units) a cell may be outside a triangle by round-off."""


class Weights(NamedTuple):
    """The value in cell g is `sum_k weights[g, k] values[vertices[g, k]]`; both `(cells, k)`."""

    vertices: Tensor
    weights: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Values `(e, m)` to cells `(e, cells)`."""
        return (values[:, self.vertices] * self.weights.to(values.dtype)).sum(-1)


@dataclass(frozen=True)
class LinearInterpolation:
    """Linear interpolation inside the convex hull of the observed places, the nearest value outside.

    Args:
        space: fields on a grid of one or two dimensions.
    """

    space: Space
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False, repr=False, compare=False)
    name: ClassVar[str] = "linear interpolation"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the Space."""
        check_grid(self.space, method=self.name)
        if len(self.space.grid) > 2:
            raise ValueError(f"{self.name} works in one or two dimensions; the grid has {self.space.grid}")

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """The interpolated fields; NaN where an experiment observes nothing of a field. See `Baseline.estimate`."""
        return _interpolate(self.space, observation, self.name, self._memo, linear_weights)


@dataclass(frozen=True)
class NearestInterpolation:
    """The value of the nearest observed place, by `Space.distance`.

    Args:
        space: fields on a grid.
    """

    space: Space
    _memo: Memo = field(default_factory=lambda: Memo(16), init=False, repr=False, compare=False)
    name: ClassVar[str] = "nearest interpolation"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the Space."""
        check_grid(self.space, method=self.name)

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """The interpolated fields; NaN where an experiment observes nothing of a field. See `Baseline.estimate`."""
        return _interpolate(self.space, observation, self.name, self._memo, nearest_weights)


def nearest_weights(space: Space, positions: Tensor) -> Weights:
    """Weight 1 on the nearest of the places `(m, n_dims)`."""
    cells = space.positions().to(positions.device)
    chunk = max(1, CHUNK_NUMBERS // positions.shape[0])
    nearest = [space.distance(part, positions).argmin(1) for part in cells.split(chunk)]
    vertices = torch.cat(nearest).unsqueeze(-1)
    return Weights(vertices, torch.ones_like(vertices, dtype=torch.float64))


def linear_weights(space: Space, positions: Tensor) -> Weights:
    """Barycentric weights inside the hull of the different places `(m, n_dims)`, 1 on the nearest outside."""
    nearest = nearest_weights(space, positions)
    owner, places = _repeated(space, positions.cpu().numpy())
    scale = _flattening(space)
    find = _between if places.shape[1] == 1 else _in_triangles
    corners, weights = find(space.positions().cpu().numpy() * scale, places * scale)
    inside = torch.from_numpy(np.isfinite(weights).all(1, keepdims=True)).to(positions.device)
    outside = torch.zeros(weights.shape, dtype=torch.float64, device=positions.device)
    outside[:, 0] = 1.0
    return Weights(
        torch.where(inside, torch.from_numpy(owner[corners]).to(positions.device), nearest.vertices),
        torch.where(inside, torch.from_numpy(weights).to(positions.device), outside),
    )


def _interpolate(
    space: Space,
    observation: Observation | None,
    method: str,
    memo: Memo,
    weights_for: Callable[[Space, Tensor], Weights],
) -> Estimate:
    y = torch.zeros(0) if observation is None else observation.y
    out = y.new_full((experiments_of(observation), len(space.channels), math.prod(space.grid_shape)), torch.nan)
    for pattern in patterns(observation, method=method) if observation is not None else ():
        for channel in pattern.channels.unique().tolist():
            part = pattern.of(channel)
            places, values = _merged(part.positions, part.values)
            weights = memo.get(content(places), partial(weights_for, space, places))
            out[part.experiments, channel] = weights.apply(values)
    return Estimate(without_no_data(out.reshape(-1, *space.event_shape), space), None)


def _merged(positions: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Places without repetition `(u, n_dims)`, and the mean of the values `(k, m)` at each, `(k, u)`."""
    places, owner = torch.unique(positions, dim=0, return_inverse=True)
    if places.shape[0] == positions.shape[0]:
        return positions, values
    sums = values.new_zeros(values.shape[0], places.shape[0]).index_add(1, owner, values)
    return places, sums / torch.bincount(owner).to(sums)


def _repeated(space: Space, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and their images one period away along periodic dimensions, and whose image each is."""
    owner = np.arange(len(positions))
    for column, name in enumerate(space.position_names):
        if name not in space.periodic:
            continue
        numbers = space.coords[name].numbers
        period = abs(numbers[-1] - numbers[0]) * numbers.size / (numbers.size - 1)
        shift = np.zeros(positions.shape[1])
        shift[column] = period
        positions = np.concatenate([positions - shift, positions, positions + shift])
        owner = np.tile(owner, 3)
    return owner, positions


def _flattening(space: Space) -> np.ndarray:
    """Factors of the position columns that make a map of a sphere about true to shape; ones on a plane."""
    scale = np.ones(len(space.position_names))
    if space.spherical is not None:
        latitude = space.coords[space.spherical[0]].numbers
        scale[1] = max(np.cos(np.deg2rad(latitude.mean())), 1e-3)
    return scale


def _in_triangles(cells: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners and barycentric weights `(cells, 3)`; NaN weights outside the hull, everywhere without a triangle."""
    from scipy.spatial import Delaunay, QhullError

    corners, weights = np.zeros((len(cells), 3), dtype=np.int64), np.full((len(cells), 3), np.nan)
    try:
        mesh = Delaunay(places)
    except (QhullError, ValueError):
        # Fewer than three places, or all on one line: their hull has no inside.
        return corners, weights
    triangle = mesh.find_simplex(cells, tol=_INSIDE)
    found = triangle >= 0
    affine = mesh.transform[triangle[found]]
    first = np.einsum("gij,gj->gi", affine[:, :2], cells[found] - affine[:, 2])
    corners[found] = mesh.simplices[triangle[found]]
    weights[found] = np.concatenate([first, 1 - first.sum(1, keepdims=True)], 1)
    return corners, weights


def _between(cells: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours on a line and their weights `(cells, 2)`; NaN weights outside."""
    order = np.argsort(places[:, 0])
    line, x = places[order, 0], cells[:, 0]
    if len(line) < 2:
        return np.zeros((len(x), 2), dtype=np.int64), np.full((len(x), 2), np.nan)
    right = np.clip(np.searchsorted(line, x), 1, len(line) - 1)
    fraction = (x - line[right - 1]) / (line[right] - line[right - 1])
    inside = (x >= line[0]) & (x <= line[-1])
    weights = np.where(inside[:, None], np.stack([1 - fraction, fraction], 1), np.nan)
    return np.stack([order[right - 1], order[right]], 1), weights
