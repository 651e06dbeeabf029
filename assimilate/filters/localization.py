"""Localisation: how much an observation counts at a grid cell a given distance away.

The taper is the compactly supported fifth-order piecewise rational function of Gaspari and Cohn. With `z = d / c`:

    0 <= z <= 1     1 - 5/3 z^2 + 5/8 z^3 + 1/2 z^4 - 1/4 z^5
    1 <= z <= 2     4 - 5 z + 5/3 z^2 + 5/8 z^3 - 1/2 z^4 + 1/12 z^5 - 2 / (3 z)
    2 <= z          0

**Length convention**: `radius` is `c`, so the weight is 5/24 = 0.21 at one radius and exactly 0 from two radii on (the
support is `2 * radius`). A Gaussian with the same curvature at zero has the standard deviation `sqrt(3/10) * radius`;
codes that state this length `L` instead (DAPPER) have `radius = 1.82 L`.

References:
    Gaspari, Cohn (1999), Construction of correlation functions in two and three dimensions,
    https://doi.org/10.1002/qj.49712555417 (eq. 4.10)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    if not radius > 0:
        raise ValueError(f"radius is {radius}; expected a positive length in the units of Space.distance (or infinity)")
