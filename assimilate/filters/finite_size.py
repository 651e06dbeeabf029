r"""The finite-size ensemble Kalman filter (EnKF-N): inflation that follows from not trusting a sample of N.

The covariance of N members is itself uncertain. With the Jeffreys prior for the true mean and covariance, the forecast
given its members is no Gaussian but a Student-t law. Its analysis is that of an ETKF whose prior anomalies are
multiplied by a factor l, found at every analysis from the observations (the dual form): with the eigenvalues lambda_i
of S S^T, q_i the squared components of S d, c = N - 1 and u = log l^2,

    minimise   sum_i D_i(u) + e exp(-u) + k u,      D_i(u) = -(q_i / c) exp(u) / (c + lambda_i exp(u)) + constant

    e = (N + 1) / N,    k = N / (N - 1)

D is the squared distance of the observations from the forecast in units of both their spreads: it pulls l up where
the ensemble is too narrow, the other two terms are the law that N members give l. They are corrected so that their
most likely value is 1 where the observations say nothing:

    e / f,  k f   with   f = (e / k)^(h / 2),    h = mean over the N directions of c / (c + lambda_i)

A multiple of both, `certainty`, states more confidence in the members than that of the Jeffreys prior.

References:
    Bocquet (2011), Ensemble Kalman filtering without the intrinsic need for inflation,
    https://doi.org/10.5194/npg-18-735-2011
    Bocquet, Sakov (2012), Combining inflation-free and iterative ensemble Kalman filters for strongly nonlinear
    systems, https://doi.org/10.5194/npg-19-383-2012 (dual form)
    Bocquet, Raanes, Hannart (2015), Expanding the validity of the ensemble Kalman filter without the intrinsic need for
    inflation, https://doi.org/10.5194/npg-22-645-2015 (correction of the most likely value)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.departures import Departures
from assimilate.filters.ensemble import Analysis, GlobalFilter, global_analysis, split
from assimilate.filters.gram import Decomposed
from dynamics.random import Rng
from dynamics.settings import check_settings, number
from observations.likelihood import Observation

GRID = 33
"""Trial values of u in one pass of the search."""
PASSES = 3
"""Passes; each divides the interval by `(GRID - 1) / 2`."""
NEWTON_STEPS = 2
"""Newton steps from the best trial value; the first leaves an error of about 1e-6, the second none."""


@dataclass(frozen=True)
class EnKFN(GlobalFilter):
    """The finite-size ensemble Kalman filter in its dual form.

    Args:
        dynamics: the system; only `step` is used.
        certainty: factor of the law of the inflation, dimensionless (1: the Jeffreys prior; larger: the members are
            trusted more; DAPPER's `xN`).
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread; they come on top.

    The evidence is that of the Gaussian with the inflated covariance.

    References:
        Bocquet, Sakov (2012), https://doi.org/10.5194/npg-19-383-2012
        Bocquet, Raanes, Hannart (2015), https://doi.org/10.5194/npg-22-645-2015

    Differs from the papers: the correction uses the mean of `c / (c + lambda_i)` over the directions of the ensemble,
    and anomalies get the symmetric root of the ETKF rather than that of the Hessian of the Student-t law (as in
    DAPPER).
    """

    certainty: float = 1.0
    name: ClassVar[str] = "EnKF-N"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_settings(self, certainty=number(above=0, words="a positive factor (1: the Jeffreys prior)"))

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        mean, anomalies = split(background)
        gram = Decomposed.of(found.spread)
        values, squares = eigenvalues(gram, found.departure.double())
        factor = prior_factor(values, squares, *size_law(values, self.certainty))
        gram = gram.scaled(factor)
        increment, anomalies = gram.analysis(factor.to(anomalies.dtype)[:, None, None] * anomalies, found.departure)
        return global_analysis(mean + increment + anomalies, background, found, gram)


def eigenvalues(gram: Decomposed, departure: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of `S S^T` and squared components of `S d` along its eigenvectors, `(E, N)` each.

    Args:
        gram: of S; the two Gram matrices have the same eigenvalues but for zeros.
        departure: d, `(E, m)`, float64.
    """
    n, m = gram.spread.shape[-2:]
    d = departure.unsqueeze(-2)
    if m >= n:
        return gram.values, (d @ gram.spread.mT @ gram.vectors).squeeze(-2).square()
    squares = gram.values * (d @ gram.vectors).squeeze(-2).square()
    return torch.nn.functional.pad(gram.values, (n - m, 0)), torch.nn.functional.pad(squares, (n - m, 0))


def size_law(values: Tensor, certainty: float = 1.0) -> tuple[Tensor, Tensor]:
    """The coefficients e and k of the law of the inflation, `(E,)` each.

    Args:
        values: eigenvalues of `S S^T`, `(E, N)`.
        certainty: factor of both.
    """
    n = values.shape[-1]
    e, k = (n + 1) / n, n / (n - 1)
    unexplained = ((n - 1) / (n - 1 + values)).mean(-1)
    correction = (e / k) ** (unexplained / 2)
    return certainty * e / correction, certainty * k * correction


def prior_factor(values: Tensor, squares: Tensor, e: Tensor, k: Tensor) -> Tensor:
    """The factor l of the prior anomalies at the minimum, `(E,)`.

    Args:
        values: eigenvalues lambda of `S S^T`, `(E, N)`, at least 0.
        squares: q, squared components of `S d` along its eigenvectors, `(E, N)`.
        e: coefficient of `exp(-u)`, `(E,)`.
        k: coefficient of `u`, `(E,)`.

    The function may have several minima: the lowest of the trial values is refined.
    """
    c = values.shape[-1] - 1
    # Directions without spread carry round-off only.
    some = values > 1e-12 * values.amax(-1, keepdim=True)
    squares = torch.where(some, squares, 0.0)
    # The slope is negative below the first bound and positive above the second.
    low = torch.log(e / k)
    high = torch.log((e + (squares / torch.where(some, values, 1.0).square()).sum(-1)) / k)
    width, bottom, u = (high - low).clamp_min(1e-6), low, low
    step = width
    ticks = torch.arange(GRID, dtype=values.dtype, device=values.device)
    for _ in range(PASSES):
        step = width / (GRID - 1)
        trial = low.unsqueeze(-1) + step.unsqueeze(-1) * ticks
        grown = torch.exp(trial).unsqueeze(-1)
        misfit = -(squares.unsqueeze(1) / c * grown / (c + values.unsqueeze(1) * grown)).sum(-1)
        cost = misfit + e.unsqueeze(-1) * torch.exp(-trial) + k.unsqueeze(-1) * trial
        u = low + step * cost.argmin(-1)
        low, width = torch.maximum(u - step, bottom), 2 * step
    for _ in range(NEWTON_STEPS):
        grown = torch.exp(u).unsqueeze(-1)
        below = c + values * grown
        first = -(squares * grown / below.square()).sum(-1) - e * torch.exp(-u) + k
        second = -(squares * grown * (c - values * grown) / below.pow(3)).sum(-1) + e * torch.exp(-u)
        move = -first / torch.where(second > 0, second, torch.inf)
        # A step stays within the last spacing of the search.
        u = u + torch.minimum(torch.maximum(move, -step), step)
    return torch.exp(u / 2)
