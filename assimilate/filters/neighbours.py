"""Which observed values are in reach of which cells, found without the distances of all to all.

Cells are split into compact tiles, by halving them along their longest side until a tile is small enough. A k-d tree of
the observed places gives what may be in reach of a tile: everything within the support of the taper plus the radius of
the tile. Only between these are distances computed, with `Space.distance`; the tree never decides.

It works in coordinates whose straight lines are a lower bound of the distance: places on the unit sphere times the
Earth's radius (the chord of a great circle), or the plane with its periodic sides. So the cost grows with the number of
cells, on any grid: regular, curvilinear or a list of cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from assimilate.filters.localization import gaspari_cohn
from dynamics.geometry import EARTH_RADIUS, unit_vectors
from dynamics.space import Space

SLACK = 1e-9
"""Relative: how much further the tree looks than it must, so that rounding there loses nothing."""


class Tile(NamedTuple):
    """Cells beside each other and the observed values that may be in their reach.

    Attributes:
        cells: `(k,)` int64, grid cells in C order.
        values: `(l,)` int64, observed values.
    """

    cells: Tensor
    values: Tensor


class Neighbourhood(NamedTuple):
    """Cells beside each other and the observed values in their reach.

    Attributes:
        cells: `(k,)` int64, grid cells in C order.
        values: `(l,)` int64, the observed values with a positive weight in some of the cells.
        taper: `(k, l)`, Gaspari-Cohn weights.
    """

    cells: Tensor
    values: Tensor
    taper: Tensor


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The search for what is in reach on one Space, for one length and one set of observed places.

    Args:
        space: gives the cells and the distances.
        places: of the observed values, `(m, n_dims)` float64.
        radius: Gaspari-Cohn length; the support is twice that.

    Raises:
        SpaceMismatch: places of another width, or a Space without distances.
    """

    space: Space
    places: Tensor
    radius: float

    def __post_init__(self) -> None:
        """Check that there are distances at all."""
        self.space.distance(self.space.positions()[:1], self.places[:1].cpu().double())

    def tiles(self, size: int, cells: Tensor | None = None) -> list[Tile]:
        """The cells in tiles of at most `size`; values without any in reach are left out, tiles are not.

        Args:
            size: cells in a tile, at least 1.
            cells: `(k,)` int64, only these; None: all.
        """
        chosen = np.arange(self._points.shape[0]) if cells is None else cells.cpu().numpy()
        points = self._points[chosen]
        groups = _split(points, size)
        if not self._everything:
            corners = np.stack([self._centre(points[group]) for group in groups])
            near = self._tree.query_ball_point(corners[:, :-1], self._reach(corners[:, -1]), return_sorted=True)
        everything = torch.arange(self.places.shape[0])
        out = []
        for k, group in enumerate(groups):
            values = everything if self._everything else torch.from_numpy(np.asarray(near[k], dtype=np.int64))
            out.append(Tile(torch.from_numpy(chosen[group]), values))
        return out

    def neighbourhood(self, tile: Tile, like: Tensor) -> Neighbourhood:
        """The exact neighbours of a tile, with the dtype and on the device of `like`."""
        cells = self.space.positions()[tile.cells].to(like.device)
        places = self.places.to(like.device)[tile.values.to(like.device)]
        taper = gaspari_cohn(self.space.distance(cells, places), self.radius).to(like.dtype)
        kept = (taper > 0).any(0).nonzero().squeeze(-1)
        return Neighbourhood(tile.cells.to(like.device), tile.values.to(like.device)[kept], taper[:, kept].contiguous())

    def reached(self, observed: Tensor) -> Tensor:
        """Which cells have an observed value in reach, `(E, cells)` bool, from `(E, m)`."""
        # Experiments mostly miss the same values: each pattern is searched for once.
        patterns, which = observed.cpu().unique(dim=0, return_inverse=True)
        rows = torch.from_numpy(np.stack([self._reached(pattern.numpy()) for pattern in patterns]))
        return rows[which].to(observed.device)

    def count(self, samples: int = 64) -> int:
        """The largest number of values in reach of a cell, among some cells."""
        if self._everything:
            return self.places.shape[0]
        step = max(1, self._points.shape[0] // samples)
        found = self._tree.query_ball_point(self._points[::step], self._reach(np.zeros(1)), return_length=True)
        return int(np.max(found))

    # ---------------------------------------------------------------------------------------------- inside

    def _reached(self, observed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        cells = self._points.shape[0]
        if self._everything or not observed.any():
            return np.full(cells, bool(observed.any()))
        tree = self._tree if observed.all() else self._grow(self._seen[observed])
        distance, _ = tree.query(self._points, distance_upper_bound=float(self._reach(np.zeros(1))[0]))
        if self.space.spherical is not None:
            distance = 2 * EARTH_RADIUS * np.arcsin(np.minimum(distance / (2 * EARTH_RADIUS), 1.0))
        return np.asarray(distance < 2 * self.radius * (1 - 1e-12))

    @cached_property
    def _everything(self) -> bool:
        around = self.space.spherical is not None and 2 * self.radius > math.pi * EARTH_RADIUS
        return math.isinf(self.radius) or around or self.places.shape[0] == 0

    @cached_property
    def _points(self) -> NDArray[np.float64]:
        return self._embedded(self.space.positions())

    @cached_property
    def _seen(self) -> NDArray[np.float64]:
        return self._embedded(self.places)

    @cached_property
    def _tree(self) -> Any:
        return self._grow(self._seen)

    def _grow(self, points: NDArray[np.float64]) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(points, boxsize=self._box)

    @cached_property
    def _box(self) -> NDArray[np.float64] | None:
        """Lengths of the periodic sides, 0 for the others."""
        if self.space.spherical is not None or not self.space.periodic:
            return None
        return np.array([self.space._period(dim) if dim in self.space.periodic else 0.0 for dim in self.space.grid])

    def _embedded(self, positions: Tensor) -> NDArray[np.float64]:
        where = positions.cpu().double()
        if self.space.spherical is not None:
            return np.asarray(EARTH_RADIUS * unit_vectors(where[:, :2]).numpy())
        points = where.numpy().copy()
        if self._box is not None:
            for side, length in enumerate(self._box):
                if length > 0:
                    points[:, side] %= length
                    # The remainder of a tiny negative number is the length itself.
                    points[points[:, side] >= length, side] = 0.0
        return points

    def _reach(self, beyond: NDArray[np.float64]) -> NDArray[np.float64]:
        """Straight-line lengths that hold the support and `beyond` more."""
        support = 2 * self.radius
        if self.space.spherical is not None:
            support = 2 * EARTH_RADIUS * math.sin(support / (2 * EARTH_RADIUS))
        return np.asarray((support + beyond) * (1 + SLACK))

    def _centre(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """The middle of some points, and the largest distance from it."""
        middle = (points.min(0) + points.max(0)) / 2
        return np.append(middle, np.sqrt(((points - middle) ** 2).sum(-1).max()))


def neighbourhoods(space: Space, places: Tensor, radius: float, size: int, like: Tensor) -> list[Neighbourhood]:
    """All cells in tiles of at most `size`, with the observed values in their reach and the tapers.

    Args:
        space: gives the cells and the distances.
        places: of the observed values, `(m, n_dims)`.
        radius: Gaspari-Cohn length.
        size: cells in a tile.
        like: tensor whose dtype and device the tapers get.
    """
    neighbours = Neighbours(space, places, radius)
    return [neighbours.neighbourhood(tile, like) for tile in neighbours.tiles(size)]


def _split(points: NDArray[np.float64], size: int) -> list[NDArray[np.int64]]:
    """Indices of points in compact groups of at most `size`, each sorted."""
    groups: list[NDArray[np.int64]] = []
    waiting = [np.arange(points.shape[0])]
    while waiting:
        group = waiting.pop()
        leaves = -(-group.size // size)
        if leaves <= 1:
            groups.append(np.sort(group))
            continue
        side = int(np.argmax(np.ptp(points[group], axis=0)))
        middle = group.size * (leaves // 2) // leaves
        order = np.argpartition(points[group, side], middle)
        waiting += [group[order[middle:]], group[order[:middle]]]
    return groups
