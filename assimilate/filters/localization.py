"""Localisation: how much an observation counts at a grid cell a given distance away.

The taper is the compactly supported fifth-order piecewise rational function of Gaspari and Cohn. With `z = d / c`:

    0 <= z <= 1     1 - 5/3 z^2 + 5/8 z^3 + 1/2 z^4 - 1/4 z^5
    1 <= z <= 2     4 - 5 z + 5/3 z^2 + 5/8 z^3 - 1/2 z^4 + 1/12 z^5 - 2 / (3 z)
    2 <= z          0

**Length convention**: `radius` is `c`, so the weight is 5/24 = 0.21 at one radius and exactly 0 from two radii on (the
support is `2 * radius`). A Gaussian with the same curvature at zero has the standard deviation `sqrt(3/10) * radius`;
codes that state this length `L` instead (DAPPER) have `radius = 1.82 L`.

Distances are those of the Space: great circles in km where the grid has latitudes and longitudes, the shorter way
round along periodic dimensions. A taper is used in two ways. R-localisation divides the error variances of the
observations by it, cell by cell (LETKF). B-localisation multiplies the covariances of the ensemble by it,

    rho_xy o (A^T S) / c,    rho_yy o (S^T S) / c,    o value by value,

between cells and observed values and among observed values (local EnKF, local EAKF).

References:
    Gaspari, Cohn (1999), Construction of correlation functions in two and three dimensions,
    https://doi.org/10.1002/qj.49712555417 (eq. 4.10)
    Houtekamer, Mitchell (2001), A sequential ensemble Kalman filter for atmospheric data assimilation,
    https://doi.org/10.1175/1520-0493(2001)129<0123:ASEKFF>2.0.CO;2 (B-localisation)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dynamics.settings import check_number, number
from dynamics.space import Space


class Reach(NamedTuple):
    """What one observed value acts on.

    Attributes:
        cells: `(k,)` int64, grid cells in C order.
        cell_taper: `(k,)`, their Gaspari-Cohn weights.
        values: `(l,)` int64, observed values.
        value_taper: `(l,)`, their weights.
    """

    cells: Tensor
    cell_taper: Tensor
    values: Tensor
    value_taper: Tensor


def gaspari_cohn(distance: Tensor, radius: float) -> Tensor:
    """The Gaspari-Cohn taper: 1 at distance 0, 0 from `2 * radius` on; shape and dtype of `distance`.

    Args:
        distance: non-negative distances, any shape, in the unit of `radius`.
        radius: half the support, positive; infinity gives 1 everywhere.
    """
    check_radius(radius)
    if math.isinf(radius):
        return torch.ones_like(distance)
    z = distance / radius
    near = 1 + z.square() * (-5 / 3 + z * (5 / 8 + z * (1 / 2 - z / 4)))
    # The factored form of the outer piece, (2 - z)^4 times a positive quotient, has no cancellation near its zero.
    far = (2 - z).clamp_min(0).pow(4) * (z * (z + 2) - 0.5) / (12 * z.clamp_min(1))
    return torch.where(z <= 1, near, far)


def check_radius(radius: float) -> None:
    """Raise a ValueError unless `radius` is a positive length."""
    words = "a positive length in the units of Space.distance (or infinity)"
    check_number("radius", radius, number(above=0, infinite=True, words=words))


def reaches(space: Space, positions: Tensor, radius: float, chunk: int, like: Tensor) -> list[Reach]:
    """What each observed value acts on: cells and observed values within `2 * radius` of it.

    Args:
        space: gives the cells and the distances.
        positions: places of the observed values, `(m, n_dims)`.
        radius: Gaspari-Cohn length.
        chunk: observed values whose distances are computed at a time.
        like: tensor whose dtype and device the tapers get.
    """
    cells = space.positions().to(like.device)
    places = positions.to(like.device)
    found = []
    for part in places.split(chunk):
        both = [gaspari_cohn(space.distance(part, where), radius).to(like.dtype) for where in (cells, places)]
        for cell_taper, value_taper in zip(*both, strict=True):
            near, beside = (taper.nonzero().squeeze(-1) for taper in (cell_taper, value_taper))
            found.append(Reach(near, cell_taper[near], beside, value_taper[beside]))
    return found
