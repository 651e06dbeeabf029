"""The iterative ensemble Kalman smoother (IEnKS): a window solved by Gauss-Newton steps with the ensemble as tangent.

    lag = None     all observations of the window at once
    lag = L        one observation time after another, each over the window [t_k - L, t_k], y_k alone new

`gauss_newton.py` has the step and the papers. A long window of a chaotic system has a cost of many valleys; observation
by observation the estimate stays in the right one (quasi-static assimilation).

References:
    Bocquet, Sakov (2014), An iterative ensemble Kalman smoother, https://doi.org/10.1002/qj.2236
    Pires, Vautard, Talagrand (1996), On extending the limits of variational assimilation in nonlinear chaotic systems,
    https://doi.org/10.1034/j.1600-0870.1996.00006.x (quasi-static)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.smoothers.base import SmootherInfo
from assimilate.smoothers.controls import Controls, draw_path, draw_start, join_noise
from assimilate.smoothers.ensemble_kalman import check_lag, first_within
from assimilate.smoothers.gauss_newton import check_iterations, minimise
from dynamics.base import Dynamics, steps_between
from dynamics.random import Rng
from observations.likelihood import Observation


@dataclass(frozen=True)
class IEnKS:
    """The iterative ensemble Kalman smoother.

    Args:
        dynamics: the system, with additive noise or none; only `prior` and `step` are used.
        lag: length of the sliding window in the time unit of the dynamics; None (default) solves the whole window at
            once, infinity goes through it observation by observation and back to the start each time.
        iterations: most runs of the model in search of a window's minimum (10), beside the forecast before and the
            run of the posterior after it; 1 is one linear step and runs nothing again, with infinite lag the EnKS.
        tolerance: a step shorter than this many prior standard deviations is the last (0.01).

    The log evidence is that of the problem linearised at the last run; exact in the limit of many members for linear
    Gaussian systems.
    """

    dynamics: Dynamics
    lag: float | None = None
    iterations: int = 10
    tolerance: float = 0.01
    name: ClassVar[str] = "IEnKS"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_lag(self.lag)
        check_iterations(self.iterations, self.tolerance)

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
        ess = x.new_full((x.shape[0],), float(members))
        if self.lag is None:
            path, noise = draw_path(self.dynamics, x, times, rng=rng, method=self.name)
            _, path, evidence = self._solve(Controls(x, noise), path, times, observations)
            return path, SmootherInfo(evidence.to(x.dtype), ess)
        path, noise, evidence = x.unsqueeze(2), None, torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        # Model steps from the start to each time.
        counts = [steps_between(self.dynamics, times[0], time) for time in times]
        for k, observation in enumerate(observations):
            if k > 0:
                new, drawn = draw_path(self.dynamics, path[:, :, -1], times[k - 1 : k + 1], rng=rng, method=self.name)
                noise = join_noise(path, noise, counts[k - 1], drawn, counts[k] - counts[k - 1])
                path = torch.cat([path, new[:, :, 1:]], 2)
            if observation is None:
                continue
            first = first_within(times, k, self.lag)
            inside = None if noise is None else noise[:, :, counts[first] :]
            seen = [*[None] * (k - first), observation]
            controls, window, gained = self._solve(
                Controls(path[:, :, first], inside), path[:, :, first:], times[first : k + 1], seen
            )
            path = torch.cat([path[:, :, :first], window], 2)
            if noise is not None and controls.noise is not None:
                noise = torch.cat([noise[:, :, : counts[first]], controls.noise], 2)
            evidence = evidence + gained
        return path, SmootherInfo(evidence.to(x.dtype), ess)

    def _solve(
        self, controls: Controls, path: Tensor, times: Sequence[float], observations: Sequence[Observation | None]
    ) -> tuple[Controls, Tensor, Tensor]:
        found = minimise(
            self.dynamics,
            controls,
            path,
            times,
            observations,
            iterations=self.iterations,
            tolerance=self.tolerance,
            method=self.name,
        )
        return found.controls, found.path, found.log_evidence
