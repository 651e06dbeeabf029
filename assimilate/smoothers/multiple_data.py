r"""The ensemble smoother with multiple data assimilation (ES-MDA): all observations, several times, each time weaker.

    p(x | y)  =  p(x) L(x)^(1/a_1) L(x)^(1/a_2) ...,      sum of 1/a_i = 1
    control_n <- control_n + K_i (y + sqrt(a_i) e_n - H(path_n)),     K_i made with a_i R

Each assimilation moves the controls (initial state and model noise, see `controls.py`) by an ensemble Kalman update
for noise of covariance a_i R, and runs the model again. For a linear Gaussian system that is Bayes' rule whatever the
a_i; for a nonlinear one many small steps, each linearised where the last one led, bend with the problem.

References:
    Emerick, Reynolds (2013), Ensemble smoother with multiple data assimilation,
    https://doi.org/10.1016/j.cageo.2012.03.011
    van Leeuwen, Evensen (1996), Data assimilation and inverse methods in terms of a probabilistic formulation,
    https://doi.org/10.1175/1520-0493(1996)124<2898:DAAIMI>2.0.CO;2 (one assimilation: the ensemble smoother)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness
from assimilate.filters.ensemble import centred_perturbations
from assimilate.filters.gram import Factored
from assimilate.filters.transforms import log_likelihood
from assimilate.smoothers.base import SmootherInfo
from assimilate.smoothers.controls import Controls, draw_path, draw_start, joint_departures, replay
from dynamics.base import Dynamics
from dynamics.random import Rng
from dynamics.settings import COUNT, POSITIVE, check_settings, several
from observations.likelihood import Observation


@dataclass(frozen=True)
class ESMDA:
    """The ensemble smoother with multiple data assimilation.

    Args:
        dynamics: the system, with additive noise or none; only `prior` and `step` are used.
        assimilations: how often the window is assimilated, with equal factors a_i = their number (4, Emerick and
            Reynolds); 1 is the ensemble smoother.
        factors: the a_i themselves instead, such as (9.333, 7, 4, 2): the noise variances are multiplied by them, and
            the sum of 1/a_i must be 1.

    Cost: the model over the window `assimilations + 1` times (twice the first time, to know the noise). The log
    evidence is the sum over assimilations, exact in the limit of many members for linear Gaussian systems.

    Differs from the paper: perturbations are centred over members and rescaled, as in `EnKF`, and the model noise is
    among the controls.
    """

    dynamics: Dynamics
    assimilations: int = 4
    factors: tuple[float, ...] | None = None
    name: ClassVar[str] = "ES-MDA"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, assimilations=COUNT, factors=several(POSITIVE, none=True))
        if self.factors is None:
            return
        total = sum(1 / a for a in self.factors)
        if not abs(total - 1) < 1e-3:
            raise ValueError(f"1/a over the factors {self.factors} sums to {total:.4g}; expected positive ones, sum 1")

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
        start = draw_start(self.dynamics, observations, times, members, rng=rng, initial=initial, method=self.name)
        path, noise = draw_path(self.dynamics, start, times, rng=rng, method=self.name)
        controls = Controls(start, noise)
        evidence = torch.zeros(start.shape[0], dtype=torch.float64, device=start.device)
        for factor in self.factors or (float(self.assimilations),) * self.assimilations:
            found = joint_departures(observations, path, method=self.name)
            if found is None:
                break
            # Whitened by a_i R instead of R, everything is smaller by sqrt(a_i); the perturbations are of unit size.
            spread, departure = found.spread / factor**0.5, found.departure / factor**0.5
            flat = controls.flat()
            pull = departure.unsqueeze(1) - spread + centred_perturbations(found, rng=rng)
            gram = Factored.of(spread)
            moved = flat + gram.increments(flat - flat.mean(1, keepdim=True), pull)
            seen = found.observed.any(-1)[:, None, None]
            controls = controls.rebuilt(torch.where(seen, moved, flat))
            evidence = evidence + log_likelihood(gram, departure, found.log_normalizer / factor)
            path = replay(self.dynamics, controls, times, method=self.name)
        ess = start.new_full((start.shape[0],), float(members))
        return path, SmootherInfo(evidence.to(start.dtype), ess)
