"""Distances between places: on a plane, on a ring or torus, on the sphere.

Pure functions on position arrays `(n, n_dims)`. On the sphere positions are (latitude, longitude) in degrees and
distances great circles in km on a sphere of the Earth's mean radius (IUGG, 6371.0088 km).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EARTH_RADIUS = 6371.0088
"""Mean radius of the Earth in km."""


def unit_vectors(positions: Tensor) -> Tensor:
    """Points on the unit sphere, `(n, 2)` degrees (latitude, longitude) -> `(n, 3)`."""
    latitude, longitude = torch.deg2rad(positions).unbind(-1)
    cosine = torch.cos(latitude)
    return torch.stack([cosine * torch.cos(longitude), cosine * torch.sin(longitude), torch.sin(latitude)], -1)


def from_unit_vectors(vectors: Tensor) -> Tensor:
    """The inverse of `unit_vectors`; vectors need not have unit length. Longitudes are in (-180, 180]."""
    x, y, z = vectors.unbind(-1)
    return torch.rad2deg(torch.stack([torch.atan2(z, torch.hypot(x, y)), torch.atan2(y, x)], -1))


def great_circle(a: Tensor, b: Tensor) -> Tensor:
    """Great-circle distances in km, `(m, 2)` and `(k, 2)` degrees -> `(m, k)`.

    The haversine form: exact to round-off for near points, where the arc cosine loses half the digits.
    """
    first, second = torch.deg2rad(a), torch.deg2rad(b)
    difference = (first[:, None] - second[None]) / 2
    cosines = torch.cos(first[:, None, 0]) * torch.cos(second[None, :, 0])
    half = torch.sin(difference[..., 0]) ** 2 + cosines * torch.sin(difference[..., 1]) ** 2
    return 2 * EARTH_RADIUS * torch.asin(torch.sqrt(half.clamp(0.0, 1.0)))


def flat_distance(a: Tensor, b: Tensor, periods: tuple[float | None, ...]) -> Tensor:
    """Euclidean distances `(m, d)`, `(k, d)` -> `(m, k)`; along a periodic dimension the shorter way round counts."""
    squared = torch.zeros(a.shape[0], b.shape[0], dtype=a.dtype, device=a.device)
    for dim, period in enumerate(periods):
        gap = (a[:, None, dim] - b[None, :, dim]).abs()
        if period is not None:
            gap = gap % period
            gap = torch.minimum(gap, period - gap)
        squared = squared + gap**2
    return squared.sqrt()


def cell_areas(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Relative areas of the cells of a curvilinear grid, from its 2-D cell centres in degrees.

    The area is |dr/di x dr/dj| for the unit vector r(i, j), by central differences.
    """
    places = torch.stack([torch.as_tensor(latitude), torch.as_tensor(longitude)], -1).double()
    r = unit_vectors(places.reshape(-1, 2)).reshape(*latitude.shape, 3).numpy()
    along_i, along_j = np.gradient(r, axis=0), np.gradient(r, axis=1)
    return np.asarray(np.linalg.norm(np.cross(along_i, along_j), axis=-1))
