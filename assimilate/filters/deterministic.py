r"""The deterministic ensemble Kalman filter (DEnKF): the Kalman gain for the mean, half of it for the anomalies.

    mean + K d,      a_n - 1/2 K S_n

With the forecast covariance P the analysis has the covariance `(I - K H) P + 1/4 K H P H^T K^T`: a little more than the
Kalman filter's, to second order in K H. So the filter brings an inflation of its own, largest where the observations
say most, and needs neither perturbed observations nor a root.

References:
    Sakov, Oke (2008), A deterministic formulation of the ensemble Kalman filter: an alternative to ensemble square root
    filters, https://doi.org/10.1111/j.1600-0870.2007.00299.x
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.departures import Departures
from assimilate.filters.ensemble import Analysis, GlobalFilter, global_analysis, split
from assimilate.filters.gram import Factored
from dynamics.random import Rng
from observations.likelihood import Observation


@dataclass(frozen=True)
class DEnKF(GlobalFilter):
    """The deterministic ensemble Kalman filter.

    Args:
        dynamics: the system; only `step` is used.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.

    References:
        Sakov, Oke (2008), https://doi.org/10.1111/j.1600-0870.2007.00299.x
    """

    name: ClassVar[str] = "DEnKF"
    # Its covariance is larger than the posterior's with any number of members.
    exactness: ClassVar[Exactness] = "biased"

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        mean, anomalies = split(background)
        departures = torch.cat([found.departure.unsqueeze(1), -0.5 * found.spread], 1)
        gram = Factored.of(found.spread)
        increments = gram.increments(anomalies, departures)
        return global_analysis(mean + increments[:, :1] + anomalies + increments[:, 1:], background, found, gram)
