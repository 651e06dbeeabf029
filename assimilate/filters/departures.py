"""Observations minus members, whitened: all that a Gaussian analysis needs to know of an observation.

    r_n = R^-1/2 (y - H(x_n)),    d = mean of r_n,    S_n = d - r_n = R^-1/2 (H(x_n) - mean of H)

`(experiment, member, value)`, values flattened; exactly 0 where not observed, for a full R too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynamics.errors import CapabilityError
from observations.likelihood import Observation
from observations.noise import GaussianNoise


class Departures(NamedTuple):
    """Whitened departures of an ensemble from its observations.

    Attributes:
        departure: d, `(E, m)`.
        spread: S, `(E, N, m)`.
        observed: `(E, m)` bool.
        log_normalizer: `(E,)`, log density of the noise at zero residual over the observed values.
    """

    departure: Tensor
    spread: Tensor
    observed: Tensor
    log_normalizer: Tensor


def gaussian_departures(observation: Observation, members: Tensor, *, method: str) -> Departures:
    """The departures of members `(E, N, *event)`.

    Raises:
        CapabilityError: the noise is not Gaussian.
        ValueError: y has other leading dims than `()` or `(E, 1)`.
    """
    noise = gaussian_noise(observation, method=method)
    observed = observed_values(observation, members)
    residual = observation.likelihood.residual(observation.y, members).flatten(2)
    departure = residual.mean(1)
    normalizer = noise.log_normalizer(departure, observed)
    return Departures(departure, departure.unsqueeze(1) - residual, observed, normalizer)


def gaussian_noise(observation: Observation, *, method: str) -> GaussianNoise:
    """The Gaussian noise of an observation; a CapabilityError if it has another."""
    noise = observation.likelihood.noise
    if not isinstance(noise, GaussianNoise):
        raise CapabilityError(
            f"{method} needs Gaussian observation noise; {type(noise).__name__} was given. Particle filters take any"
        )
    return noise


def observed_values(observation: Observation, members: Tensor) -> Tensor:
    """Which values are observed in each experiment, `(E, m)` bool.

    Raises:
        ValueError: y has other leading dims than `()` or `(E, 1)`.
    """
    obs = observation.likelihood.operator.obs_shape
    y = observation.y
    lead = tuple(y.shape[: y.ndim - len(obs)])
    experiments = members.shape[0]
    if lead not in ((), (1, 1), (experiments, 1)):
        raise ValueError(
            f"y has shape {tuple(y.shape)} for {experiments} experiment(s) and observed values {obs}; expected {obs}, "
            f"the same for all experiments, or {(experiments, 1, *obs)}"
        )
    observed = ~torch.isnan(y).reshape(*lead, -1).to(members.device)
    return observed.reshape(-1, observed.shape[-1]).expand(experiments, -1)
