"""Climatology: what is known when neither the past nor an observation is used.

`Climatology` is the mean and standard deviation of many states; `ClimatologyFilter` draws a new ensemble from the
dynamics' prior at every time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from assimilate.baselines.base import Estimate, experiments_of
from assimilate.baselines.persistence import without_evidence
from assimilate.filters.base import EnsembleFilter, Exactness, FilterState, Info
from dynamics.base import Dynamics
from dynamics.random import Rng
from dynamics.space import Space
from observations.likelihood import Observation


@dataclass(frozen=True, eq=False)
class Climatology:
    """The mean and standard deviation of a record, at all times the same.

    Args:
        space: what a state is.
        mean: `(*event)` in Space units.
        std: `(*event)`, at least 0.
    """

    space: Space
    mean: Tensor
    std: Tensor
    name: ClassVar[str] = "climatology"
    exactness: ClassVar[Exactness] = "biased"

    def __post_init__(self) -> None:
        """Check the shapes and the signs."""
        event = self.space.event_shape
        if tuple(self.mean.shape) != event or tuple(self.std.shape) != event:
            raise ValueError(f"mean has shape {tuple(self.mean.shape)}, std {tuple(self.std.shape)}; expected {event}")
        if not bool((self.std >= 0).all()):
            raise ValueError("std is negative or NaN somewhere; expected standard deviations")

    @classmethod
    def fit(cls, states: Tensor, space: Space, *, pooled: bool = False) -> Climatology:
        """From many states.

        Args:
            states: `(*b, *event)` in Space units, at least 2 of them.
            space: what a state is.
            pooled: whether all cells of a channel share one mean and standard deviation.
        """
        flat = states.reshape(-1, *space.event_shape)
        if flat.shape[0] < 2:
            raise ValueError("a climatology needs at least 2 states")
        mean, std = flat.mean(0), flat.std(0)
        if pooled and space.grid:
            values = flat.transpose(0, 1).flatten(1)
            shape = (-1, *[1] * len(space.grid))
            mean, std = (v.reshape(shape).expand_as(mean).clone() for v in (values.mean(1), values.std(1)))
        return cls(space, mean, std)

    def estimate(self, observation: Observation | None, time: float) -> Estimate:
        """The same field and spread at every time. See `Baseline.estimate`."""
        shape = (experiments_of(observation), *self.mean.shape)
        return Estimate(self.mean.expand(shape), self.std.expand(shape))


@dataclass(frozen=True)
class ClimatologyFilter(EnsembleFilter):
    """New members from the dynamics' prior at every time.

    Args:
        dynamics: the system; only `prior` is used.
    """

    dynamics: Dynamics
    name: ClassVar[str] = "climatology"
    exactness: ClassVar[Exactness] = "biased"

    def step(
        self, state: FilterState, observation: Observation | None, time: float, *, rng: Rng
    ) -> tuple[FilterState, Info]:
        """Fresh draws of the prior; see `Filter.step`."""
        old = state.members
        members = self.dynamics.prior(tuple(old.shape[:2]), rng=rng, dtype=old.dtype, device=old.device)
        equal = torch.full_like(state.log_weights, -math.log(old.shape[1]))
        return FilterState(members, equal, float(time)), without_evidence(members, observation)
