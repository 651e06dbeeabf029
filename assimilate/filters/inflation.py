"""What is done to the spread of an ensemble around an analysis: inflation, relaxation to the prior, rotation.

Conventions. With background anomalies B and analysis anomalies A, in this order,

    prior inflation            B <- factor B                                   before the analysis
    relaxation to the prior    A <- (1 - a) A + a B                            perturbations (RTPP)
                               std(A) <- (1 - a) std(A) + a std(B)             spread, value by value (RTPS)
    inflation                  A <- factor A                                   after the analysis
    rotation                   A <- Q A,  Q orthogonal with Q 1 = 1
    additive inflation         A <- A + E,  E draws of a Gaussian, centred over the members

Factors are those of the anomalies (the variance goes with their square), as in DAPPER. None of it moves the mean, and
all of it acts only where something was observed, so a forecast without observations is left alone.

References:
    Anderson, Anderson (1999), A Monte Carlo implementation of the nonlinear filtering problem,
    https://doi.org/10.1175/1520-0493(1999)127<2741:AMCIOT>2.0.CO;2 (inflation)
    Zhang, Snyder, Sun (2004), Impacts of initial estimate and observation availability on convective-scale data
    assimilation with an ensemble Kalman filter,
    https://doi.org/10.1175/1520-0493(2004)132<1238:IOIEAO>2.0.CO;2 (relaxation to the prior perturbations)
    Whitaker, Hamill (2012), Evaluating methods to account for system errors in ensemble data assimilation,
    https://doi.org/10.1175/MWR-D-11-00276.1 (relaxation to the prior spread; additive inflation)
    Sakov, Oke (2008), Implications of the form of the ensemble transformation in the ensemble square root filters,
    https://doi.org/10.1175/2007MWR2021.1 (mean-preserving rotation)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dynamics.covariance import Covariance
from dynamics.random import Rng, normal
from dynamics.settings import check_number, number


def check_spread_settings(
    inflation: float,
    relaxation: float = 0.0,
    *,
    prior_inflation: float = 1.0,
    perturbation_relaxation: float = 0.0,
    additive: float | Covariance = 0.0,
    event_shape: tuple[int, ...] | None = None,
) -> None:
    """Raise a ValueError unless factors are positive, relaxations fractions and the additive noise a Gaussian.

    Args:
        inflation: factor of the anomalies after the analysis.
        relaxation: fraction, of the spread.
        prior_inflation: factor of the anomalies before the analysis.
        perturbation_relaxation: fraction, of the anomalies.
        additive: standard deviation, or covariance.
        event_shape: of a state; None does not compare it with that of the covariance.
    """
    factor = number(above=0, words="a positive factor of the anomalies, such as 1.02")
    share = number(0, 1, words="a fraction between 0 (none) and 1 (that of the prior kept)")
    check_number("inflation", inflation, factor)
    check_number("prior_inflation", prior_inflation, factor)
    check_number("relaxation", relaxation, share)
    check_number("perturbation_relaxation", perturbation_relaxation, share)
    if not isinstance(additive, Covariance):
        words = "a standard deviation in Space units (0: none), or a Covariance"
        check_number("additive", additive, number(0, words=words))
    elif event_shape is not None and tuple(additive.event_shape) != event_shape:
        raise ValueError(
            f"additive is a covariance of events {tuple(additive.event_shape)}; the state is {event_shape}"
        )


def inflate(
    members: Tensor,
    background: Tensor,
    observed: Tensor,
    *,
    inflation: float = 1.0,
    relaxation: float = 0.0,
    perturbation_relaxation: float = 0.0,
) -> Tensor:
    """Relax, then inflate the anomalies of `members`.

    Args:
        members: analysis `(E, N, *event)`.
        background: forecast `(E, N, *event)`, its member n that from which member n of the analysis was made.
        observed: bool, broadcastable against `(E, *event)`: where the analysis used an observation.
        inflation: factor of the anomalies, dimensionless.
        relaxation: fraction in [0, 1], of the spread.
        perturbation_relaxation: fraction in [0, 1], of the anomalies; comes first.
    """
    if perturbation_relaxation:
        change = (background - background.mean(1, keepdim=True)) - (members - members.mean(1, keepdim=True))
        members = members + torch.where(observed.unsqueeze(1), perturbation_relaxation, 0.0) * change
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


def add_noise(members: Tensor, observed: Tensor, additive: float | Covariance, *, rng: Rng) -> Tensor:
    """Members with a draw of N(0, additive^2 I), or of a covariance, added to each, centred over the members.

    Args:
        members: `(E, N, *event)`, N at least 2.
        observed: bool, broadcastable against `(E, *event)`; elsewhere nothing is added.
        additive: standard deviation in Space units, or a covariance.
        rng: draws `(E, N, *event)` numbers.

    Returns:
        Members of the same mean; the sample covariance of what was added (divisor N - 1) is that asked for, on average.
    """
    draws = normal(rng, tuple(members.shape), dtype=members.dtype, device=members.device)
    noise = additive * draws if isinstance(additive, int | float) else additive.colour(draws)
    return members + torch.where(observed.unsqueeze(1), noise - noise.mean(1, keepdim=True), 0.0)


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
