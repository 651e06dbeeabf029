r"""The ensemble Kalman smoother (EnKS): a filter whose analyses also correct the states before them.

    forecast    all members, once; the path behind them is kept
    analysis    path_n <- path_n + K_path d_n,      K_path from the covariance of the whole path with H(x_k)

The weights over members are those of the filter at time k, only the anomalies they act on are longer. With a lag, y_k
corrects states from t_k - lag on and older ones are final (fixed-lag smoother): what a chaotic system forgets, a small
ensemble can only spoil with sampling noise, and the cost no longer grows with the length of the past.

References:
    Evensen, van Leeuwen (2000), An ensemble Kalman smoother for nonlinear dynamics,
    https://doi.org/10.1175/1520-0493(2000)128<1852:AEKSFN>2.0.CO;2
    Cohn, Sivakumaran, Todling (1994), A fixed-lag Kalman smoother for retrospective data assimilation,
    https://doi.org/10.1175/1520-0493(1994)122<2838:AFLKSF>2.0.CO;2 (the lag)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, check_finite, forecast
from assimilate.filters.departures import gaussian_departures
from assimilate.filters.ensemble import centred_perturbations
from assimilate.filters.gram import Decomposed, Factored
from assimilate.filters.inflation import check_spread_settings, inflate, rotate
from assimilate.filters.transforms import log_likelihood
from assimilate.smoothers.base import SmootherInfo
from assimilate.smoothers.controls import draw_start
from dynamics.base import Dynamics
from dynamics.random import Rng
from dynamics.settings import check_number, number
from observations.likelihood import Observation

Analysis = Literal["square root", "perturbed"]


@dataclass(frozen=True)
class EnKS:
    """The ensemble Kalman smoother, over a whole window or with a fixed lag.

    Args:
        dynamics: the system; only `prior` and `step` are used.
        lag: how far back an observation corrects, in the time unit of the dynamics; None (default) to the start.
        analysis: "square root" (default), the transform of the ETKF, or "perturbed", the stochastic EnKF.
        inflation: factor of the anomalies of the present state after each analysis, dimensionless (1: none).
        rotate: whether a random rotation that keeps mean and covariance follows each analysis. All times are rotated
            alike, so that a member stays one trajectory.

    Memory is one path a member; with `lag=None` the cost grows with the square of the number of times.
    """

    dynamics: Dynamics
    lag: float | None = None
    analysis: Analysis = "square root"
    inflation: float = 1.0
    rotate: bool = False
    name: ClassVar[str] = "EnKS"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_spread_settings(self.inflation)
        check_lag(self.lag)
        if self.analysis not in get_args(Analysis):
            raise ValueError(f"analysis is {self.analysis!r}; expected one of {', '.join(get_args(Analysis))}")

    def solve(
        self,
        observations: Sequence[Observation | None],
        times: Sequence[float],
        members: int,
        *,
        rng: Rng,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, SmootherInfo]:
        """Trajectories `(E, N, K, *event)`, equally weighted; see `Smoother.solve`.

        Raises:
            CapabilityError: the noise of an observation is not Gaussian.
            Diverged: members are no longer finite.
        """
        x = draw_start(self.dynamics, observations, times, members, rng=rng, initial=initial, method=self.name)
        path = x.new_zeros(*x.shape[:2], len(times), *x.shape[2:])
        evidence = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for k, observation in enumerate(observations):
            if k > 0:
                x = forecast(self.dynamics, path[:, :, k - 1], times[k - 1], times[k], rng=rng, method=self.name)
            path[:, :, k] = x
            if observation is not None:
                evidence = evidence + self._correct(path, observation, times, k, rng)
                check_finite(path[:, :, k], self.name, times[k], times[max(k - 1, 0)], "members after the analysis")
        ess = x.new_full((x.shape[0],), float(members))
        return path, SmootherInfo(evidence.to(x.dtype), ess)

    def _correct(self, path: Tensor, observation: Observation, times: Sequence[float], k: int, rng: Rng) -> Tensor:
        """Correct the path in place, as far back as the lag reaches; returns the log evidence `(E,)`."""
        first = first_within(times, k, self.lag)
        found = gaussian_departures(observation, path[:, :, k], method=self.name)
        window = path[:, :, first : k + 1]
        flat = window.flatten(2)
        mean = flat.mean(1, keepdim=True)
        if self.analysis == "perturbed":
            departures = found.departure.unsqueeze(1) - found.spread + centred_perturbations(found, rng=rng)
            factored = Factored.of(found.spread)
            flat = flat + factored.increments(flat - mean, departures)
            evidence = log_likelihood(factored, found.departure, found.log_normalizer)
        else:
            decomposed = Decomposed.of(found.spread)
            increment, anomalies = decomposed.analysis(flat - mean, found.departure)
            evidence = log_likelihood(decomposed, found.departure, found.log_normalizer)
            flat = mean + increment + anomalies
        any_observed = found.observed.any(-1)
        where = any_observed.reshape(-1, *[1] * (window.ndim - 1))
        # Without a single observed value the path stays, to the last bit.
        path[:, :, first : k + 1] = torch.where(where, flat.reshape(window.shape), window)
        now = path[:, :, k]
        path[:, :, k] = inflate(now, now, where[:, 0, 0], inflation=self.inflation)
        if self.rotate:
            path[:] = rotate(path, any_observed, rng=rng)
        return evidence


def check_lag(lag: float | None) -> None:
    """Raise a ValueError unless `lag` is a length of time, 0 or more, or None."""
    words = "a length of time, 0 (no smoothing) or more, or None for all of it"
    check_number("lag", lag, number(0, infinite=True, none=True, words=words))


def first_within(times: Sequence[float], k: int, lag: float | None) -> int:
    """Index of the first time that is at most `lag` before `times[k]`; 0 where `lag` is None."""
    if lag is None:
        return 0
    slack = 1e-6 * max(1.0, abs(times[k]), lag)
    return next(j for j in range(k + 1) if times[j] >= times[k] - lag - slack)
