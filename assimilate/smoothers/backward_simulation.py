r"""The backward-simulation particle smoother: trajectories drawn backwards through the particles of a filter.

    forward      particles x_k^i with weights W_k^i ~ p(x_k | y_0..k)
    backward     x_K from W_K, then    x_k = x_k^i  with probability  ~ W_k^i p(x_k+1 | x_k^i)

Each draw is a trajectory from p(x_0..K | y_0..K) as the number of particles grows, for any nonlinear model with a
known Gaussian transition and any noise of the observations. The filter's own ancestral lines share one ancestor after
a while; these do not, because at every time a state may join any particle's past.

References:
    Godsill, Doucet, West (2004), Monte Carlo smoothing for nonlinear time series,
    https://doi.org/10.1198/016214504000000151
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.filters.base import Exactness, FilterState
from assimilate.filters.particle import BootstrapFilter, GuidedParticleFilter
from assimilate.posterior.weights import Scheme, check_resampling
from assimilate.smoothers.base import SmootherInfo
from assimilate.smoothers.controls import draw_start
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.covariance import Covariance, ScaledIdentity
from dynamics.errors import CapabilityError
from dynamics.random import Rng, Streams, uniform
from dynamics.settings import check_settings, whole
from observations.likelihood import Observation

PAIRS = 2**19
"""Pairs of trajectory and particle that are compared at a time (4 MB in float64, about a cache)."""


@dataclass(frozen=True)
class BackwardSimulation:
    """Forward filtering and backward simulation (FFBS) with particles.

    Args:
        dynamics: a `TransitionDensity` with a definite noise covariance.
        particles: number of particles of the forward filter; None (default): as many as trajectories.
        guided: whether the forward filter is the guided one (optimal proposal for linear operators) instead of the
            bootstrap filter.
        resampling: "systematic", "stratified" or "residual".
        threshold: resample when the effective sample size is at most this fraction of the particles; 0 never, 1
            always.

    Cost is trajectories times particles for every model step; memory is the particles of all steps. The log evidence is
    that of the forward filter.

    Raises:
        CapabilityError: the transition density is not known, or the model noise is singular.
    """

    dynamics: Dynamics
    particles: int | None = None
    guided: bool = False
    resampling: Scheme = "systematic"
    threshold: float = 0.5
    name: ClassVar[str] = "backward simulation"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_resampling(self.resampling, self.threshold)
        words = "a whole number of 2 or more, or None for the number of members"
        check_settings(self, particles=whole(2, none=True, words=words))
        if not isinstance(self.dynamics, TransitionDensity):
            raise CapabilityError(
                f"{self.name} needs dynamics with moments() and log_prob(); {type(self.dynamics).__name__} has none: "
                "use EnKS or IEnKS"
            )

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
            Diverged: every particle is impossible under an observation, or not finite.
        """
        count = members if self.particles is None else self.particles
        # The particles' own rows; draws of both are counted together.
        forward = replace(rng, members=count) if isinstance(rng, Streams) else rng
        start = draw_start(self.dynamics, observations, times, count, rng=forward, initial=initial, method=self.name)
        grid, kept = self._grid(times)
        seen: list[Observation | None] = [None] * len(grid)
        for k, place in enumerate(kept):
            seen[place] = observations[k]
        states, evidence = self._filter(start, seen, grid, forward)
        experiments = start.shape[0]
        shape = (experiments, members)

        def numbers() -> Tensor:
            return uniform(rng, shape, dtype=torch.float64, device=start.device)

        last = states[-1].log_weights.double().unsqueeze(1).expand(-1, members, -1)
        x = _pick(states[-1].members, _draw(last, numbers()))
        path = [x]
        for k in range(len(grid) - 2, -1, -1):
            assert isinstance(self.dynamics, TransitionDensity)
            mean, covariance = self.dynamics.moments(states[k].members, grid[k])
            drawn = _backward(_white(covariance, x), _white(covariance, mean), states[k].log_weights, numbers())
            x = _pick(states[k].members, drawn)
            path.append(x)
        kept_states = torch.stack([path[len(grid) - 1 - place] for place in kept], 2)
        return kept_states, SmootherInfo(evidence, start.new_full((experiments,), float(members)))

    def _grid(self, times: Sequence[float]) -> tuple[list[float], list[int]]:
        """Every model step of the window, and where the given times are among them."""
        grid, kept = [float(times[0])], [0]
        for before, after in zip(times[:-1], times[1:], strict=True):
            steps = steps_between(self.dynamics, before, after)
            grid += [before + j * self.dynamics.dt for j in range(1, steps)] + [float(after)]
            kept.append(len(grid) - 1)
        return grid, kept

    def _filter(
        self, start: Tensor, observations: Sequence[Observation | None], grid: Sequence[float], rng: Rng
    ) -> tuple[list[FilterState], Tensor]:
        """The weighted particles at every model step, and the log evidence `(E,)`."""
        kind = GuidedParticleFilter if self.guided else BootstrapFilter
        method = kind(self.dynamics, resampling=self.resampling, threshold=self.threshold)
        state = method.init(start, grid[0])
        states, evidence = [], start.new_zeros(start.shape[0])
        for time, observation in zip(grid, observations, strict=True):
            state, info = method.step(state, observation, time, rng=rng)
            states.append(state)
            evidence = evidence + info.log_evidence
        return states, evidence


def _white(covariance: Covariance, x: Tensor) -> Tensor:
    """States `(E, N, *event)` in units in which the model noise is white, `(E, N, d)` float64."""
    flat = x.flatten(2).double()
    if isinstance(covariance, ScaledIdentity):
        if not bool(covariance.variance > 0):
            raise CapabilityError("the model noise is 0: the transition has no density; use EnKS or IEnKS")
        return flat / covariance.variance.to(flat).sqrt()
    factor, failed = torch.linalg.cholesky_ex(covariance.dense().to(flat))
    if bool(failed.any()):
        raise CapabilityError("the covariance of the model noise is singular: there is no density; use EnKS or IEnKS")
    return torch.linalg.solve_triangular(factor, flat.mT, upper=False).mT


def _backward(x: Tensor, means: Tensor, log_weights: Tensor, numbers: Tensor) -> Tensor:
    """Which particle each trajectory comes from, `(E, N)`.

    Args:
        x: the next states of the trajectories, whitened, `(E, N, d)`.
        means: the expected next states of the particles, whitened, `(E, P, d)`.
        log_weights: of the particles, `(E, P)`.
        numbers: uniform, `(E, N)`.
    """
    chunk = max(PAIRS // (means.shape[0] * means.shape[1]), 1)
    picks = []
    for part, given in zip(x.split(chunk, 1), numbers.split(chunk, 1), strict=True):
        # Differences, not |x|^2 - 2 x m + |m|^2, which cancels where the noise is small.
        distance = torch.cdist(part, means, compute_mode="donot_use_mm_for_euclid_dist")
        picks.append(_draw(log_weights.double().unsqueeze(1) - 0.5 * distance.square(), given))
    return torch.cat(picks, 1)


def _draw(log_weights: Tensor, numbers: Tensor) -> Tensor:
    """One index for each row of log weights `(E, N, P)`, from uniform numbers `(E, N)`, by inversion."""
    total = torch.softmax(log_weights, -1).cumsum(-1)
    found = torch.searchsorted(total, (numbers * total[..., -1]).unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp_max(log_weights.shape[-1] - 1)


def _pick(members: Tensor, indices: Tensor) -> Tensor:
    """Members `(E, P, *event)` at indices `(E, N)`."""
    rows = torch.arange(members.shape[0], device=members.device).unsqueeze(-1)
    return members[rows, indices]
