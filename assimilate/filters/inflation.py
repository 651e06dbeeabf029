"""What is done to the spread of an analysis: multiplicative inflation, relaxation to the prior spread, rotation.

Conventions. `inflation` multiplies the anomalies after the analysis (the variance by its square), as in DAPPER;
`relaxation` is Whitaker and Hamill's alpha in `std <- (1 - alpha) std_analysis + alpha std_background`, value by value,
before the inflation. Both act only where something was observed, so a forecast without observations is left alone.

References:
    Anderson, Anderson (1999), A Monte Carlo implementation of the nonlinear filtering problem,
    https://doi.org/10.1175/1520-0493(1999)127<2741:AMCIOT>2.0.CO;2 (inflation)
    Whitaker, Hamill (2012), Evaluating methods to account for system errors in ensemble data assimilation,
    https://doi.org/10.1175/MWR-D-11-00276.1 (relaxation)
    Sakov, Oke (2008), Implications of the form of the ensemble transformation in the ensemble square root filters,
    https://doi.org/10.1175/2007MWR2021.1 (mean-preserving rotation)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamics.random import Rng, normal


def check_spread_settings(inflation: float, relaxation: float = 0.0) -> None:
    """Raise a ValueError unless `inflation` is positive and `relaxation` a fraction."""
    if not (inflation > 0 and math.isfinite(inflation)):
        raise ValueError(f"inflation is {inflation}; expected a positive factor of the anomalies, such as 1.02")
    if not 0 <= relaxation <= 1:
        raise ValueError(f"relaxation is {relaxation}; expected a fraction between 0 (none) and 1 (prior spread kept)")


def inflate(
    members: Tensor, background: Tensor, observed: Tensor, *, inflation: float = 1.0, relaxation: float = 0.0
) -> Tensor:
    """Relax, then inflate the anomalies of `members`.

    Args:
        members: analysis `(E, N, *event)`.
        background: forecast `(E, N, *event)`.
        observed: bool, broadcastable against `(E, *event)`: where the analysis used an observation.
        inflation: factor of the anomalies, dimensionless.
        relaxation: fraction in [0, 1].
    """
    if inflation == 1 and relaxation == 0:
        return members
    mean = members.mean(1, keepdim=True)
    excess = torch.full_like(mean, inflation - 1)
    if relaxation:
        after, before = members.std(1, keepdim=True), background.std(1, keepdim=True)
        # Without spread after the analysis there is nothing to rescale.
        relaxed = 1 + relaxation * (before - after) / torch.where(after > 0, after, torch.inf)
        excess = inflation * relaxed - 1
    # Added to the members, so that what is not observed stays to the last bit.
    return members + torch.where(observed.unsqueeze(1), excess, 0.0) * (members - mean)


def rotate(members: Tensor, observed: Tensor, *, rng: Rng) -> Tensor:
    """Members whose anomalies are mixed by a random rotation that keeps mean and covariance.

    Args:
        members: `(E, N, *event)`.
        observed: `(E,)` bool; the other experiments stay as they are.
        rng: draws `(E, N, N)` numbers.
    """
    experiments, n = members.shape[:2]
    draws = normal(rng, (experiments, n, n), dtype=torch.float64, device=members.device)
    rotation = mean_preserving_rotation(draws)
    rotation = torch.where(
        observed.reshape(-1, 1, 1), rotation, torch.eye(n, dtype=rotation.dtype, device=members.device)
    )
    mean = members.mean(1, keepdim=True)
    mixed = rotation.to(members.dtype) @ (members - mean).flatten(2)
    return mean + mixed.reshape(members.shape)


def mean_preserving_rotation(draws: Tensor) -> Tensor:
    """Random orthogonal matrices that map `(1, ..., 1)` to itself, from standard normal `draws` `(E, N, N)`.

    A Haar rotation of the N - 1 directions across the vector of ones, the coordinates of which come from the
    reflection that takes that vector to the first axis.
    """
    n = draws.shape[-1]
    ones = torch.ones(n, dtype=draws.dtype, device=draws.device) / math.sqrt(n)
    first = torch.zeros_like(ones)
    first[0] = 1.0
    axis = ones - first
    length = axis.square().sum()
    reflection = torch.eye(n, dtype=draws.dtype, device=draws.device)
    if n > 1:
        reflection = reflection - 2 * torch.outer(axis, axis) / length
    q, r = torch.linalg.qr(draws[:, 1:, 1:])
    inner = torch.zeros_like(draws)
    inner[:, 0, 0] = 1.0
    # The signs of R's diagonal make the distribution uniform (Mezzadri 2007).
    inner[:, 1:, 1:] = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    return reflection @ inner @ reflection
