"""Global ensemble Kalman filters: the stochastic EnKF and the ensemble transform Kalman filter (ETKF).

Both replace the forecast covariance by that of the members, A^T A / (N - 1), and update with the Kalman gain made from
it (`transforms.py`). With `d_n = R^-1/2 (y - H(x_n))` they differ in the members:

    EnKF     x_n + K (d_n + e_n)         e_n ~ N(0, I), centred over the members and rescaled to unit variance
    ETKF     mean + K d_mean + T A       T the symmetric square root: mean and covariance of the members are exact

The operator may be nonlinear: `H(x_n)` of every member takes the place of a linearisation. The noise must be Gaussian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import (
    EnsembleFilter,
    Exactness,
    FilterState,
    Info,
    check_finite,
    forecast,
)
from assimilate.filters.departures import Departures, gaussian_departures
from assimilate.filters.inflation import check_spread_settings, inflate, rotate
from assimilate.filters.transforms import innovation_log_likelihood, kalman_increments, square_root_analysis
from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics
from dynamics.random import Rng, normal
from observations.likelihood import Observation


@dataclass(frozen=True)
class EnKF(EnsembleFilter):
    """The stochastic ensemble Kalman filter, with perturbed observations.

    Args:
        dynamics: the system; only `step` is used.
        inflation: factor of the anomalies after the analysis, dimensionless (1: none).
        relaxation: relaxation to the prior spread, a fraction (0: none).
        rotate: whether a random rotation that keeps mean and covariance follows the analysis.

    References:
        Evensen (1994), Sequential data assimilation with a nonlinear quasi-geostrophic model using Monte Carlo methods
        to forecast error statistics, https://doi.org/10.1029/94JC00572
        Burgers, van Leeuwen, Evensen (1998), Analysis scheme in the ensemble Kalman filter,
        https://doi.org/10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2

    Differs from the paper: the perturbations of the observations are centred, so that they do not move the mean, and
    multiplied by sqrt(N / (N - 1)), which gives back the variance that centring takes (as in DAPPER).
    """

    dynamics: Dynamics
    inflation: float = 1.0
    relaxation: float = 0.0
    rotate: bool = False
    name: ClassVar[str] = "EnKF"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_spread_settings(self.inflation, self.relaxation)

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        if observation is None:
            return unobserved(state, background, time)
        found = gaussian_departures(observation, background, method=self.name)
        mean, anomalies = split(background)
        noise = centred_perturbations(found, rng=rng)
        increments = kalman_increments(anomalies, found.spread, found.departure.unsqueeze(1) - found.spread + noise)
        members = (mean + anomalies + increments).reshape(background.shape)
        return finish(self, state, background, members, found, time, rng)


@dataclass(frozen=True)
class ETKF(EnsembleFilter):
    """The ensemble transform Kalman filter with the symmetric square root.

    Args:
        dynamics: the system; only `step` is used.
        inflation: factor of the anomalies after the analysis, dimensionless (1: none).
        relaxation: relaxation to the prior spread, a fraction (0: none).
        rotate: whether a random rotation that keeps mean and covariance follows the analysis; it undoes the
            outliers that square roots make in nonlinear systems.

    References:
        Bishop, Etherton, Majumdar (2001), Adaptive sampling with the ensemble transform Kalman filter,
        https://doi.org/10.1175/1520-0493(2001)129<0420:ASWTET>2.0.CO;2
        Wang, Bishop, Julier (2004), Which is better, an ensemble of positive-negative pairs or a centered spherical
        simplex ensemble?, https://doi.org/10.1175/1520-0493(2004)132<1590:WIBAEO>2.0.CO;2 (the symmetric root)
    """

    dynamics: Dynamics
    inflation: float = 1.0
    relaxation: float = 0.0
    rotate: bool = False
    name: ClassVar[str] = "ETKF"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_spread_settings(self.inflation, self.relaxation)

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        if observation is None:
            return unobserved(state, background, time)
        found = gaussian_departures(observation, background, method=self.name)
        mean, anomalies = split(background)
        increment, anomalies = square_root_analysis(anomalies, found.spread, found.departure)
        members = (mean + increment + anomalies).reshape(background.shape)
        return finish(self, state, background, members, found, time, rng)


def split(members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(E, 1, n)` and anomalies `(E, N, n)` of members `(E, N, *event)` with flattened events."""
    if members.shape[1] < 2:
        raise ValueError("an ensemble Kalman filter needs at least 2 members; 1 was given")
    flat = members.flatten(2)
    mean = flat.mean(1, keepdim=True)
    return mean, flat - mean


def centred_perturbations(found: Departures, *, rng: Rng) -> Tensor:
    """Whitened observation noise `(E, N, m)`: member mean 0, expected sample covariance I, 0 where not observed."""
    n = found.spread.shape[1]
    noise = normal(rng, tuple(found.spread.shape), dtype=found.spread.dtype, device=found.spread.device)
    noise = (noise - noise.mean(1, keepdim=True)) * math.sqrt(n / (n - 1))
    return noise * found.observed.unsqueeze(1)


def unobserved(state: FilterState, background: Tensor, time: float) -> tuple[FilterState, Info]:
    """The result of a step without observation: the forecast, log evidence 0."""
    experiments, n = background.shape[:2]
    return FilterState(background, state.log_weights, float(time)), Info(
        background, background.new_zeros(experiments), background.new_full((experiments,), float(n))
    )


def finish(
    method: EnKF | ETKF,
    state: FilterState,
    background: Tensor,
    members: Tensor,
    found: Departures,
    time: float,
    rng: Rng,
) -> tuple[FilterState, Info]:
    """Spread settings, the check for divergence and the record of a global analysis."""
    experiments, n = background.shape[:2]
    any_observed = found.observed.any(-1)
    where = any_observed.reshape(-1, *[1] * (members.ndim - 2))
    members = inflate(members, background, where, inflation=method.inflation, relaxation=method.relaxation)
    if method.rotate:
        members = rotate(members, any_observed, rng=rng)
    # Without a single observed value the forecast stays, to the last bit.
    members = torch.where(where.unsqueeze(1), members, background)
    check_finite(members, method.name, time, state.time, "members after the analysis")
    evidence = innovation_log_likelihood(found.spread, found.departure, found.log_normalizer).to(members.dtype)
    info = Info(background, evidence, members.new_full((experiments,), float(n)))
    return FilterState(members, uniform_log_weights(members), float(time)), info
