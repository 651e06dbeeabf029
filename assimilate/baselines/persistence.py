"""Persistence: the state stays as it was.

`Persistence` repeats the last known state of a record (the truth of an hour ago, an earlier analysis);
`PersistenceFilter` keeps its initial ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.baselines.base import Estimate
from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, Info
from assimilate.filters.departures import observed_values
from dynamics.base import Dynamics
from dynamics.random import Rng
from dynamics.space import Space
from observations.likelihood import Observation


@dataclass(frozen=True, eq=False)
class Persistence:
    """The last state of a record that is earlier than the time asked for.

    Args:
        space: what a state is.
        states: `(E, K, *event)` in Space units, E = 1 for all experiments alike.
        times: K increasing times of these states.
    """

    space: Space
    states: Tensor
    times: tuple[float, ...]
    name: ClassVar[str] = "persistence"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check that there is one time for each state and that they increase."""
        object.__setattr__(self, "times", tuple(float(time) for time in self.times))
        expected = (len(self.times), *self.space.event_shape)
        if not self.times or tuple(self.states.shape[1:]) != expected:
            raise ValueError(
                f"states have shape {tuple(self.states.shape)}; expected (experiment, *{expected}), "
                f"one state for each of the {len(self.times)} times"
            )
        if any(b <= a for a, b in zip(self.times[:-1], self.times[1:], strict=True)):
            raise ValueError("the times of the states do not increase")

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """The last known state; NaN before and at the first time. See `Baseline.estimate`."""
        earlier = [k for k, known in enumerate(self.times) if known < time]
        if not earlier:
            return Estimate(torch.full_like(self.states[:, 0], torch.nan), None)
        return Estimate(self.states[:, earlier[-1]], None)


@dataclass(frozen=True)
class PersistenceFilter(EnsembleFilter):
    """The initial ensemble, unchanged by time and observations.

    Args:
        dynamics: not run; it tells what a state is.
    """

    dynamics: Dynamics
    name: ClassVar[str] = "persistence"
    exactness: ClassVar[Exactness] = "biased"

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """The same members at `time`; see `Filter.step`."""
        return FilterState(state.members, state.log_weights, float(time)), without_evidence(state.members, observation)


def without_evidence(members: Tensor, observation: Observation | None) -> Info:
    """The record of a step that looks at no observation: log evidence NaN where there was one."""
    experiments, n = members.shape[:2]
    evidence = members.new_zeros(experiments)
    if observation is not None:
        evidence = evidence.masked_fill(observed_values(observation, members).any(-1), torch.nan)
    return Info(members, evidence, members.new_full((experiments,), float(n)))
