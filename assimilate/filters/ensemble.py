"""Global ensemble Kalman filters: the stochastic EnKF and the ensemble transform Kalman filter (ETKF).

Both replace the forecast covariance by that of the members, A^T A / (N - 1), and update with the Kalman gain made from
it (`transforms.py`). With `d_n = R^-1/2 (y - H(x_n))` they differ in the members:

    EnKF     x_n + K (d_n + e_n)         e_n ~ N(0, I), centred over the members and rescaled to unit variance
    ETKF     mean + K d_mean + T A       T the symmetric square root: mean and covariance of the members are exact

The operator may be nonlinear: `H(x_n)` of every member takes the place of a linearisation. The noise must be Gaussian.

`EnsembleKalmanFilter` has the settings and the step that all of them share, local ones too; a filter adds `_analyse`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

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
from assimilate.filters.departures import Departures, gaussian_departures, observed_values
from assimilate.filters.gram import Decomposed, Factored
from assimilate.filters.inflation import add_noise, check_spread_settings, inflate, rotate
from assimilate.filters.transforms import log_likelihood
from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics
from dynamics.covariance import Covariance
from dynamics.random import Rng, normal
from observations.likelihood import Observation

Perturbations = Literal["rescaled", "centred", "independent"]


class Analysis(NamedTuple):
    """What an analysis makes of the background, before the settings of the spread.

    Attributes:
        members: `(E, N, *event)`.
        reached: bool, broadcastable against `(E, *event)`: where an observation had a say.
        log_evidence: `(E,)`, 0 where nothing was observed; NaN where the method has no estimate.
    """

    members: Tensor
    reached: Tensor
    log_evidence: Tensor


@dataclass(frozen=True)
class EnsembleKalmanFilter(EnsembleFilter, ABC):
    """Settings and step of the ensemble Kalman filters; `inflation.py` has the formulas.

    Args:
        dynamics: the system; only `step` is used.
        inflation: factor of the anomalies after the analysis, dimensionless (1: none).
        prior_inflation: factor of the anomalies before the analysis, dimensionless (1: none); `Info.background` has it.
        relaxation: relaxation to the prior spread (RTPS), a fraction (0: none).
        perturbation_relaxation: relaxation to the prior perturbations (RTPP), a fraction (0: none).
        additive: additive inflation: standard deviation in Space units of noise that is added to every value after the
            analysis (0: none), or a covariance from which the noise is drawn.
        rotate: whether a random rotation that keeps mean and covariance follows the analysis; it undoes the outliers
            that square roots make in nonlinear systems.
    """

    dynamics: Dynamics
    _: KW_ONLY
    inflation: float = 1.0
    prior_inflation: float = 1.0
    relaxation: float = 0.0
    perturbation_relaxation: float = 0.0
    additive: float | Covariance = 0.0
    rotate: bool = False
    name: ClassVar[str]
    exactness: ClassVar[Exactness]

    def __post_init__(self) -> None:
        """Check the settings."""
        check_spread_settings(
            self.inflation,
            self.relaxation,
            prior_inflation=self.prior_inflation,
            perturbation_relaxation=self.perturbation_relaxation,
            additive=self.additive,
            event_shape=self.dynamics.space.event_shape,
        )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Forecast to `time`, then assimilate; see `Filter.step`."""
        background = forecast(self.dynamics, state.members, state.time, time, rng=rng, method=self.name)
        if observation is None:
            return unobserved(state, background, time)
        if self.prior_inflation != 1:
            reached = self._reached(observation, background)
            background = inflate(background, background, reached, inflation=self.prior_inflation)
        found = gaussian_departures(observation, background, method=self.name)
        analysis = self._analyse(background, found, observation, rng=rng)
        return finish(self, state, background, analysis, found, time, rng)

    @abstractmethod
    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        """The analysis of members `(E, N, *event)` from their departures."""

    @abstractmethod
    def _reached(self, observation: Observation, members: Tensor) -> Tensor:
        """Where an observation has a say, bool, broadcastable against `(E, *event)`."""


class GlobalFilter(EnsembleKalmanFilter):
    """An ensemble Kalman filter in which every observation acts on the whole state."""

    def _reached(self, observation: Observation, members: Tensor) -> Tensor:
        return anywhere(observed_values(observation, members), members)


@dataclass(frozen=True)
class EnKF(GlobalFilter):
    """The stochastic ensemble Kalman filter, with perturbed observations.

    Args:
        dynamics: the system; only `step` is used.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.
        perturbations: how the observations are perturbed: "rescaled" (default), centred over the members, so that they
            do not move the mean, and multiplied by sqrt(N / (N - 1)), so that each has unit variance again; "centred"
            without that factor, so that their sample covariance (divisor N - 1) is I on average and not N / (N - 1);
            "independent", as drawn.

    References:
        Evensen (1994), Sequential data assimilation with a nonlinear quasi-geostrophic model using Monte Carlo methods
        to forecast error statistics, https://doi.org/10.1029/94JC00572
        Burgers, van Leeuwen, Evensen (1998), Analysis scheme in the ensemble Kalman filter,
        https://doi.org/10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2

    Differs from the paper: its perturbations are "independent"; "rescaled" is what DAPPER does.
    """

    perturbations: Perturbations = field(default="rescaled", kw_only=True)
    name: ClassVar[str] = "EnKF"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_perturbations(self.perturbations)

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        mean, anomalies = split(background)
        noise = perturbations(found, self.perturbations, rng=rng)
        gram = Factored.of(found.spread)
        increments = gram.increments(anomalies, found.departure.unsqueeze(1) - found.spread + noise)
        return global_analysis(mean + anomalies + increments, background, found, gram)


@dataclass(frozen=True)
class ETKF(GlobalFilter):
    """The ensemble transform Kalman filter with the symmetric square root.

    Args:
        dynamics: the system; only `step` is used.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.

    References:
        Bishop, Etherton, Majumdar (2001), Adaptive sampling with the ensemble transform Kalman filter,
        https://doi.org/10.1175/1520-0493(2001)129<0420:ASWTET>2.0.CO;2
        Wang, Bishop, Julier (2004), Which is better, an ensemble of positive-negative pairs or a centered spherical
        simplex ensemble?, https://doi.org/10.1175/1520-0493(2004)132<1590:WIBAEO>2.0.CO;2 (the symmetric root)
    """

    name: ClassVar[str] = "ETKF"
    exactness: ClassVar[Exactness] = "consistent"

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        mean, anomalies = split(background)
        gram = Decomposed.of(found.spread)
        increment, anomalies = gram.analysis(anomalies, found.departure)
        return global_analysis(mean + increment + anomalies, background, found, gram)


def split(members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(E, 1, n)` and anomalies `(E, N, n)` of members `(E, N, *event)` with flattened events."""
    if members.shape[1] < 2:
        raise ValueError("an ensemble Kalman filter needs at least 2 members; 1 was given")
    flat = members.flatten(2)
    mean = flat.mean(1, keepdim=True)
    return mean, flat - mean


def centred_perturbations(found: Departures, *, rng: Rng) -> Tensor:
    """Whitened observation noise `(E, N, m)`: member mean 0, each of unit variance, 0 where not observed."""
    return perturbations(found, "rescaled", rng=rng)


def perturbations(found: Departures, kind: Perturbations, *, rng: Rng) -> Tensor:
    """Whitened perturbations of the observations, `(E, N, m)`, 0 where not observed; see `EnKF`."""
    noise = normal(rng, tuple(found.spread.shape), dtype=found.spread.dtype, device=found.spread.device)
    if kind != "independent":
        noise = noise - noise.mean(1, keepdim=True)
    if kind == "rescaled":
        n = noise.shape[1]
        noise = noise * math.sqrt(n / (n - 1))
    return noise * found.observed.unsqueeze(1)


def check_perturbations(kind: str) -> None:
    """Raise a ValueError unless `kind` is a kind of perturbations."""
    if kind not in get_args(Perturbations):
        raise ValueError(f"perturbations is {kind!r}; expected one of {', '.join(get_args(Perturbations))}")


def anywhere(observed: Tensor, members: Tensor) -> Tensor:
    """Experiments with an observed value, from `(E, m)`, as `(E, 1, ...)` that broadcasts against `(E, *event)`."""
    return observed.any(-1).reshape(-1, *[1] * (members.ndim - 2))


def global_analysis(
    flat: Tensor, background: Tensor, found: Departures, gram: Factored | Decomposed | None = None
) -> Analysis:
    """New members of a filter without localisation, with the Gaussian evidence of the background.

    Args:
        flat: the new members, `(E, N, n)`.
        background: the old ones, `(E, N, *event)`.
        found: their departures.
        gram: the spread of `found`, where the analysis has factored it; None: it is factored here.
    """
    gram = Factored.of(found.spread) if gram is None else gram
    evidence = log_likelihood(gram, found.departure, found.log_normalizer)
    return Analysis(flat.reshape(background.shape), anywhere(found.observed, background), evidence.to(flat.dtype))


def smoothed(
    method: EnsembleKalmanFilter, earlier: Tensor, ahead: Tensor, observation: Observation, time: float, *, rng: Rng
) -> Tensor:
    """Earlier states after an observation of later ones: the lag-one smoother of an ensemble Kalman filter.

    Args:
        method: gives the analysis, its localisation and its spread settings.
        earlier: `(E, N, *event)`.
        ahead: the members at the time of the observation, drawn from `earlier` one by one, `(E, N, *event)`.
        observation: of `ahead`.
        time: of the observation.
        rng: for methods that draw.
    """
    found = gaussian_departures(observation, ahead, method=method.name)
    analysis = method._analyse(earlier, found, observation, rng=rng)
    before = FilterState(earlier, uniform_log_weights(earlier), time)
    return finish(method, before, earlier, analysis, found, time, rng)[0].members


def unobserved(state: FilterState, background: Tensor, time: float) -> tuple[FilterState, Info]:
    """The result of a step without observation: the forecast, log evidence 0."""
    experiments, n = background.shape[:2]
    return FilterState(background, state.log_weights, float(time)), Info(
        background, background.new_zeros(experiments), background.new_full((experiments,), float(n))
    )


def finish(
    method: EnsembleKalmanFilter,
    state: FilterState,
    background: Tensor,
    analysis: Analysis,
    found: Departures,
    time: float,
    rng: Rng,
) -> tuple[FilterState, Info]:
    """Spread settings, the check for divergence and the record of an analysis."""
    experiments, n = background.shape[:2]
    members = inflate(
        analysis.members,
        background,
        analysis.reached,
        inflation=method.inflation,
        relaxation=method.relaxation,
        perturbation_relaxation=method.perturbation_relaxation,
    )
    if method.rotate:
        members = rotate(members, found.observed.any(-1), rng=rng)
    if not (isinstance(method.additive, int | float) and method.additive == 0):
        members = add_noise(members, analysis.reached, method.additive, rng=rng)
    # Without a single observed value the forecast stays, to the last bit.
    members = torch.where(anywhere(found.observed, members).unsqueeze(1), members, background)
    check_finite(members, method.name, time, state.time, "members after the analysis")
    info = Info(background, analysis.log_evidence, members.new_full((experiments,), float(n)))
    return FilterState(members, uniform_log_weights(members), float(time)), info
