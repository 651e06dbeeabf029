r"""Serial square root filters: observed values are assimilated one after another.

For one value the root is a number. With s the anomalies of its prediction in units of the noise, v = s.s / (N - 1) and
a the anomalies of any state value or other prediction,

    gain = a.s / ((N - 1) (1 + v)),     mean + gain d,     a - gain s / (1 + (1 + v)^-1/2)

The ensemble square root filter (EnSRF) and the ensemble adjustment Kalman filter (EAKF) are this same formula; the EAKF
writes it as a shift of the predictions that is regressed on the state. The local EAKF multiplies the gain by the
Gaspari-Cohn weight of the distance (B-localisation). Neither needs a matrix of values by values.

References:
    Whitaker, Hamill (2002), Ensemble data assimilation without perturbed observations,
    https://doi.org/10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2
    Anderson (2003), A local least squares framework for ensemble filtering,
    https://doi.org/10.1175/1520-0493(2003)131<0634:ALLSFF>2.0.CO;2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.departures import Departures
from assimilate.filters.ensemble import Analysis, GlobalFilter, global_analysis, split
from assimilate.filters.local import CHUNK_NUMBERS, REMEMBERED_NUMBERS, LocalFilter
from assimilate.filters.localization import reaches
from assimilate.filters.transforms import serial_analysis
from assimilate.memo import content
from dynamics.random import Rng
from observations.likelihood import Observation

Actions = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SerialEnSRF(GlobalFilter):
    """The ensemble square root filter with serial assimilation.

    Args:
        dynamics: the system; only `step` is used.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.

    Mean and covariance are those of the ETKF, the members differ by a rotation that depends on the order of the values.
    Correlated errors are whitened first. The cost is a pass over the state for each observed value.

    References:
        Whitaker, Hamill (2002), https://doi.org/10.1175/1520-0493(2002)130<1913:EDAWPO>2.0.CO;2
    """

    name: ClassVar[str] = "serial EnSRF"
    exactness: ClassVar[Exactness] = "consistent"

    def _analyse(self, background: Tensor, found: Departures, observation: Observation, *, rng: Rng) -> Analysis:
        mean, anomalies = split(background)
        increment, anomalies = serial_analysis(anomalies, found.spread, found.departure)
        return global_analysis(mean + increment + anomalies, background, found)


@dataclass(frozen=True)
class LocalEAKF(LocalFilter):
    """The ensemble adjustment Kalman filter with serial assimilation and B-localisation.

    Args:
        dynamics: the system; `space` gives the places and distances, only `step` is used.
        radius: Gaspari-Cohn length; see `LocalFilter`, and there also what raises. Infinity gives `SerialEnSRF`.
        inflation: see `EnsembleKalmanFilter`, and there also the other settings of the spread.

    With localisation the order of the values matters a little: it is that of the operator.

    References:
        Anderson (2003), https://doi.org/10.1175/1520-0493(2003)131<0634:ALLSFF>2.0.CO;2
    """

    name: ClassVar[str] = "local EAKF"
    exactness: ClassVar[Exactness] = "biased"

    def _analyse_at(self, background: Tensor, found: Departures, places: Tensor, *, rng: Rng) -> tuple[Tensor, Tensor]:
        _, anomalies = split(background)
        grid = math.prod(self.dynamics.space.grid_shape)
        observed = found.observed
        if math.isinf(self.radius):
            increment, after = serial_analysis(anomalies, found.spread, found.departure)
            reached = observed.any(-1, keepdim=True).expand(-1, grid)
        else:
            actions = self._actions(places, background)
            increment, after = serial_analysis(anomalies, found.spread, found.departure, actions)
            reached = torch.zeros(observed.shape[0], grid, dtype=torch.bool, device=background.device)
            for j, (index, _) in enumerate(actions):
                cells = index[index < grid]
                reached[:, cells] |= observed[:, j : j + 1]
        # As a change of the members, so that cells out of reach stay exact.
        change = increment + (after - anomalies)
        return background + change.reshape(background.shape), reached

    def _actions(self, places: Tensor, like: Tensor) -> Actions:
        """What each value acts on, in the state values followed by the predictions, and the factors of its gain."""
        space = self.dynamics.space
        channels, cells, m = len(space.channels), math.prod(space.grid_shape), places.shape[0]

        def compute() -> Actions:
            offsets = torch.arange(channels, device=like.device).unsqueeze(-1) * cells
            out = []
            for reach in reaches(space, places, self.radius, max(1, CHUNK_NUMBERS // (cells + m)), like):
                index = torch.cat([(reach.cells + offsets).flatten(), reach.values + channels * cells])
                out.append((index, torch.cat([reach.cell_taper.repeat(channels), reach.value_taper])))
            return out

        if (channels * cells + m) * m > REMEMBERED_NUMBERS:
            return compute()
        return self._memo.get(("actions", content(places), like.dtype, str(like.device)), compute)
