r"""An analysis that is looked at: quality control before it, and what the observations say of it.

Without either the method makes its step and that is all. With a background check the forecast comes first:

    forecast, then analysis     for ensemble Kalman filters whose step is just that: bit for bit the same numbers
    a forecast beside it        for every other filter: a step without observation, with the same random numbers

The second costs another forecast, and is what the filter would have done without the observation: a bootstrap filter's
own background, a draw from the transition for FlowDAS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assimilate.engine.flags import BACKGROUND, GROSS, MISSING, UNDECIDED, USED
from assimilate.engine.network import Rows
from assimilate.engine.results import moments
from assimilate.feedback import Feedback
from assimilate.filters.base import Filter, Info
from assimilate.filters.ensemble import EnsembleKalmanFilter
from assimilate.quality import Quality, flagged, looks_at_background
from dynamics.errors import CapabilityError
from dynamics.random import Streams
from observations.likelihood import Likelihood, Observation
from observations.noise import SignalNoise, noise_at


@dataclass(frozen=True)
class Inspection:
    """What is looked at.

    Args:
        quality: checks of the values, or None.
        feedback: where observed values and their counterparts are kept, or None.
    """

    quality: Quality | None = None
    feedback: Feedback | None = None


class Looked(NamedTuple):
    """What was seen at one time, and what is known of it.

    Attributes:
        observation: all values, rejected ones NaN.
        rows: about each value.
        when: the time, as it is on the time axis.
    """

    observation: Observation
    rows: Rows
    when: Any


class Record(NamedTuple):
    """Observed values and their counterparts at one time, `(E, m)`; NaN where unknown.

    Attributes:
        flags: see `assimilate.engine.flags`.
        background_mean: of H(x_b), the forecast.
        background_std: likewise.
        analysis_mean: of H(x_a).
        analysis_std: likewise.
        chi_square: `(E,)`, d^T (HBH^T + R)^-1 d / m over the m values used, d = y - <H(x_b)>; NaN where none was.
        rejected: `(E,)`, values that a check rejected.
    """

    flags: Tensor
    background_mean: Tensor
    background_std: Tensor
    analysis_mean: Tensor
    analysis_std: Tensor
    chi_square: Tensor
    rejected: Tensor


def inspected_step(
    inspection: Inspection,
    method: Filter[Any],
    state: Any,
    looked: Looked | None,
    time: float,
    streams: Streams,
) -> tuple[Any, Info, Callable[[], Record]]:
    """A filter's step with the checks before it.

    Args:
        inspection: what is looked at.
        method: the filter.
        state: before the step.
        looked: what was seen; None for a forecast.
        time: of the analysis.
        streams: of this step; fresh ones are made where they are needed twice.

    Returns:
        State and record of the filter, and a function that compares with the observations, which is no part of it.
    """
    fresh: Callable[[], Streams] = lambda: streams.at(streams.step)  # noqa: E731
    if looked is None:
        state, info = method.step(state, None, time, rng=fresh())
        return state, info, partial(nothing, info)
    observation = looked.observation
    likelihood, experiments = observation.likelihood, streams.rows[0]
    y = _flat(observation, experiments)
    flags = torch.from_numpy(looked.rows.flag).to(y.device).expand_as(y).clone()
    flags[(flags == UNDECIDED) & torch.isnan(y)] = MISSING
    rng = fresh()
    ahead: tuple[Tensor, Tensor | None] | None = None
    if inspection.quality is not None:
        mean = std = None
        if looks_at_background(inspection.quality):
            forecast, _ = method.step(state, None, time, rng=rng)
            ahead = method.ensemble(forecast)
            mean, spread = counterparts(likelihood, ahead[0], ahead[1])
            std = (noise_variance(likelihood, mean) + spread.square()).sqrt()
            if type(method).step is EnsembleKalmanFilter.step:
                state = forecast
            else:
                rng = fresh()
        flags = flagged(inspection.quality, y, flags, looked.rows.instrument, mean, std)
        rejected = (flags == GROSS) | (flags == BACKGROUND)
        if bool(rejected.any()):
            y = y.masked_fill(rejected, torch.nan)
            observation = Observation(likelihood, y.reshape(experiments, 1, *likelihood.operator.obs_shape))
    flags[flags == UNDECIDED] = USED
    used = None if bool(torch.isnan(y).all()) else observation
    state, info = method.step(state, used, time, rng=rng)
    if info.background is not None:
        ahead = (info.background, info.background_log_weights)
    return state, info, partial(_record, method, state, likelihood, y, flags, ahead)


def counterparts(likelihood: Likelihood, members: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(E, m)` of H(x) over members `(E, N, *event)`; 0 deviation for one member."""
    seen = likelihood.operator(members).flatten(2)
    mean, std = moments(seen, log_weights)
    return mean, torch.zeros_like(mean) if std is None else std


def noise_variance(likelihood: Likelihood, expected: Tensor) -> Tensor:
    """Variances of the noise `(E, m)` where H(x) is `expected`; infinite for a law that has none."""
    noise = likelihood.noise
    try:
        if isinstance(noise, SignalNoise):
            # Whitening divides by the standard deviation: these laws are independent from value to value.
            return noise_at(noise, expected).whiten(torch.ones_like(expected)).square().reciprocal()
        return noise.variance(expected.shape[-1], dtype=expected.dtype, device=expected.device).expand_as(expected)
    except CapabilityError:
        return torch.full_like(expected, torch.inf)


def chi_square(likelihood: Likelihood, y: Tensor, members: Tensor, log_weights: Tensor | None) -> Tensor:
    r"""d^T (HBH^T + R)^-1 d / m of each experiment, `(E,)`, with HBH^T that of the members; 1 is expected.

    In whitened values, with the weighted anomalies A of the members, it is that of I + A^T A, whose inverse is
    I - A^T (I + A A^T)^-1 A where there are fewer members than values.

    Args:
        likelihood: operator and noise.
        y: values `(E, m)`, NaN where not used.
        members: forecast `(E, N, *event)`.
        log_weights: `(E, N)` normalised, or None.
    """
    shaped = y.reshape(y.shape[0], 1, *likelihood.operator.obs_shape)
    try:
        residual = likelihood.residual(shaped, members).flatten(2).double()
    except CapabilityError:
        return y.new_full(y.shape[:1], torch.nan)
    n = members.shape[1]
    weights = residual.new_full((y.shape[0], n), 1 / n) if log_weights is None else log_weights.double().exp()
    departure = (weights.unsqueeze(-1) * residual).sum(1)
    freedom = (1 - weights.square().sum(1)).clamp_min(torch.finfo(torch.float64).tiny)
    anomalies = (departure.unsqueeze(1) - residual) * (weights / freedom.unsqueeze(-1)).sqrt().unsqueeze(-1)
    few = n < y.shape[1]
    matrix = anomalies @ anomalies.mT if few else anomalies.mT @ anomalies
    matrix = matrix + torch.eye(matrix.shape[-1], dtype=torch.float64, device=y.device)
    score = (anomalies @ departure.unsqueeze(-1)).squeeze(-1) if few else departure
    solved = (score * torch.linalg.solve(matrix, score.unsqueeze(-1)).squeeze(-1)).sum(-1)
    count = (~torch.isnan(y)).sum(-1)
    found = (departure.square().sum(-1) - solved if few else solved) / count
    return torch.where(count > 0, found, torch.nan).to(y.dtype)


def nothing(info: Info) -> Record:
    """The record of a time without observations."""
    none = info.ess.new_zeros(len(info.ess), 0)
    return Record(none.int(), none, none, none, none, torch.full_like(info.ess, torch.nan), torch.zeros_like(info.ess))


def _flat(observation: Observation, experiments: int) -> Tensor:
    obs = observation.likelihood.operator.obs_shape
    lead = observation.y.ndim - len(obs)
    return observation.y.reshape(-1 if lead else 1, observation.likelihood.operator.obs_size).expand(experiments, -1)


def _record(
    method: Filter[Any],
    state: Any,
    likelihood: Likelihood,
    y: Tensor,
    flags: Tensor,
    ahead: tuple[Tensor, Tensor | None] | None,
) -> Record:
    unknown = torch.full_like(y, torch.nan)
    mean, std, ratio = unknown, unknown, y.new_full(y.shape[:1], torch.nan)
    if ahead is not None:
        mean, std = counterparts(likelihood, *ahead)
        ratio = chi_square(likelihood, y, *ahead)
    after = counterparts(likelihood, *method.ensemble(state))
    rejected = ((flags == GROSS) | (flags == BACKGROUND)).sum(-1).to(y.dtype)
    return Record(flags, mean, std, *after, ratio, rejected)


def keep(inspection: Inspection, looked: Looked, record: Record, alive: tuple[int, ...], experiments: int) -> None:
    """Put a record of the experiments `alive` into the feedback, if there is one."""
    if inspection.feedback is None:
        return
    found = {name: part.detach().cpu().numpy() for name, part in record._asdict().items()}
    inspection.feedback.add(looked.rows, looked.when, found, alive, experiments)
