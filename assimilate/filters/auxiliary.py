r"""The auxiliary particle filter: members are chosen by how well they are about to fit, then moved.

    first stage     a_i ~ lambda,    lambda_j  proportional to  W_j p^(y | x_{k-1,j})^power
    second stage    x_i ~ proposal from x_{k-1,a_i},    w_i = W_a / (N lambda_a) times the proposal's own weight

`p^` is a guess of the predictive likelihood; the weights put right whatever is wrong with it, and

    p(y_k | y_1..k-1) = sum_i w_i      (its expectation is exact for every N, guess and proposal)

Two pairs of guess and proposal:

    "bootstrap"   x ~ p(x_k | x_{k-1}),            p^ = p(y | M(x_{k-1})),  M the dynamics without noise
    "guided"      x ~ q(x_k | x_{k-1}, y),         p^ = N(r(f); 0, S), the evidence of the Gaussian proposal

For a linear operator and Gaussian noise the guided pair is exact: all weights are then 1/N (full adaption), and only
resampling is left to chance. A guess made with the mean alone is too sure of itself where the model noise is large:
`power` below 1 flattens it.

References:
    Pitt, Shephard (1999), Filtering via simulation: auxiliary particle filters,
    https://doi.org/10.1080/01621459.1999.10474153
    Carpenter, Clifford, Fearnhead (1999), Improved particle filter for nonlinear problems,
    https://doi.org/10.1049/ip-rsn:19990255 (one weight and one resampling a step, as here)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from assimilate.filters.base import Diverged, EnsembleFilter, Exactness, FilterState, Info, forecast
from assimilate.filters.departures import observed_values
from assimilate.filters.particle import linearise, propose, weigh
from assimilate.posterior.weights import (
    Resampled,
    Scheme,
    WeightCollapse,
    check_resampling,
    log_normalize,
    resample,
    select,
)
from dynamics.base import Dynamics, TransitionDensity, steps_between
from dynamics.errors import CapabilityError
from dynamics.random import Rng
from dynamics.settings import check_settings, number
from observations.likelihood import Observation

Proposal = Literal["bootstrap", "guided"]


@dataclass(frozen=True)
class AuxiliaryFilter(EnsembleFilter):
    """The auxiliary particle filter.

    Args:
        dynamics: the system. "guided" needs a `TransitionDensity`; "bootstrap" only `step`, which it calls twice as
            often.
        proposal: "bootstrap" (default) or "guided"; see the module.
        resampling: "systematic", "stratified" or "residual".
        threshold: choose members by the first stage when the effective sample size of lambda is at most this fraction
            of N; 0 never (no resampling at all), 1 always (default, as published).
        power: exponent of the guess, in [0, 1] (1; 0 is the filter without a first stage).

    Raises:
        CapabilityError: "guided", and the transition density of the dynamics is not known.
        ValueError: a setting is out of its range.

    References:
        Pitt, Shephard (1999), https://doi.org/10.1080/01621459.1999.10474153

    Differs from the paper: members are resampled once a step, with the weights of the step before in lambda (the paper
    resamples again after the second stage), and the weights of the last step are kept.
    """

    dynamics: Dynamics
    proposal: Proposal = "bootstrap"
    resampling: Scheme = "systematic"
    threshold: float = 1.0
    power: float = 1.0
    name: ClassVar[str] = "auxiliary particle filter"
    exactness: ClassVar[Exactness] = "consistent"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_resampling(self.resampling, self.threshold)
        if self.proposal not in get_args(Proposal):
            raise ValueError(f"proposal is {self.proposal!r}; expected one of {', '.join(get_args(Proposal))}")
        check_settings(self, power=number(0, 1, words="an exponent from 0 to 1"))
        if self.proposal == "guided" and not isinstance(self.dynamics, TransitionDensity):
            raise CapabilityError(
                f"{self.name} with proposal='guided' needs dynamics with moments() and log_prob(); "
                f"{type(self.dynamics).__name__} has none: use proposal='bootstrap'"
            )

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Choose by the first stage, move to `time`, then weigh; see `Filter.step`."""
        steps = steps_between(self.dynamics, state.time, time)
        if observation is not None:
            observed_values(observation, state.members)
        if steps and observation is not None and self.proposal == "guided":
            return self._guided(state, observation, time, steps, rng=rng)
        start = self._choose(state, self._guess(state, observation, time), time, rng=rng) if steps else _stay(state)
        members = forecast(self.dynamics, start.members, state.time, time, rng=rng, method=self.name)
        increments = None if observation is None else observation.likelihood.log_prob(observation.y, members)
        return self._weigh(state, time, start, members, members, increments)

    def _guided(
        self, state: FilterState, observation: Observation, time: float, steps: int, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        before = state.time + (steps - 1) * self.dynamics.dt
        previous = forecast(self.dynamics, state.members, state.time, before, rng=rng, method=self.name)
        assert isinstance(self.dynamics, TransitionDensity)
        mean, covariance = self.dynamics.moments(previous, before)
        linear = linearise(mean, covariance, observation)
        start = self._choose(state, linear.log_evidence().to(mean.dtype), time, rng=rng)
        chosen = linear.at(start.ancestors)
        found = propose(select(mean, start.ancestors), covariance, observation, chosen, rng=rng)
        return self._weigh(state, time, start, found.background, found.members, found.log_weights)

    def _guess(self, state: FilterState, observation: Observation | None, time: float) -> Tensor:
        """Log p(y | M(x)), `(E, N)`; 0 where nothing is observed."""
        if observation is None or self.power == 0:
            return torch.zeros_like(state.log_weights)
        ahead = forecast(self.dynamics, state.members, state.time, time, rng=None, method=self.name)
        return observation.likelihood.log_prob(observation.y, ahead)

    def _choose(self, state: FilterState, guess: Tensor, time: float, *, rng: Rng) -> Resampled:
        """Members chosen by lambda, with the weights W / (N lambda) that they must carry, not normalised."""
        try:
            chosen, _ = log_normalize(state.log_weights + self.power * guess)
        except WeightCollapse as error:
            raise Diverged(self.name, time, state.time, str(error)) from error
        start = resample(state.members, chosen, self.resampling, self.threshold, rng=rng)
        owed = (state.log_weights - chosen).gather(-1, start.ancestors) - math.log(guess.shape[-1])
        kept = torch.where(start.triggered.unsqueeze(-1), owed, state.log_weights)
        return start._replace(log_weights=kept)

    def _weigh(
        self,
        state: FilterState,
        time: float,
        start: Resampled,
        background: Tensor,
        members: Tensor,
        increments: Tensor | None,
    ) -> tuple[FilterState, Info]:
        if increments is None:
            start = start._replace(log_weights=log_normalize(start.log_weights)[0])
        after, info = weigh(self.name, state.time, time, start, background, members, increments)
        return after, info._replace(background_log_weights=log_normalize(start.log_weights)[0])


def _stay(state: FilterState) -> Resampled:
    """Every member as it is."""
    lead = state.members.shape[:2]
    stay = torch.arange(lead[1], device=state.members.device).expand(lead)
    never = torch.zeros(lead[0], dtype=torch.bool, device=state.members.device)
    return Resampled(state.members, state.log_weights, stay, never)
