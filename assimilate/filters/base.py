"""What a filter is: an immutable set of settings that turns one state into the next.

    state, info = filter.step(state, observation, time, rng=rng)       forecast to `time`, then analysis

Members are `(experiment, member, *event)` tensors in Space units: many seeds, settings or test trajectories are one
batched computation, and an experiment never looks at another. A filter is a frozen dataclass with `dynamics` as its
first field and two class attributes: `name`, the usual name of the method, and `exactness`:

    "exact"        the posterior of a linear-Gaussian system, with any number of members (Kalman filter)
    "consistent"   the exact posterior as the number of members grows: particle filters on any system, EnKF and ETKF on
                   linear Gaussian ones
    "biased"       neither (localised analyses, for instance)

Observations of NaN are not observed, and `None` is no observation at all: both leave the forecast as it is.

A state is made of tensors, numbers, text, None, and (named) tuples, lists, dicts or dataclasses of them. Its tensors
lead with the experiment: that is how a run takes out an experiment that diverged, and how it is written to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from assimilate.posterior.weights import uniform_log_weights
from dynamics.base import Dynamics, advance
from dynamics.random import Rng
from observations.likelihood import Observation

Exactness = Literal["exact", "consistent", "biased"]
State = TypeVar("State")


class Diverged(RuntimeError):
    """Members became NaN or infinite, or every weight zero. Nothing is repaired.

    Args:
        method: the name of the filter.
        time: the time at which it was noticed, in the time unit of the dynamics.
        last_finite: the last time at which every member was finite.
        what: what is no longer finite, and where.
        experiments: rows of the batch that diverged; empty where the filter cannot tell. `run` goes on with the others.
    """

    def __init__(
        self, method: str, time: float, last_finite: float, what: str, experiments: Sequence[int] = ()
    ) -> None:
        self.method = method
        self.time = time
        self.last_finite = last_finite
        self.experiments = tuple(experiments)
        super().__init__(f"{method} diverged at time {time:g} (last finite at {last_finite:g}): {what}")

    def __reduce__(self) -> tuple[type, tuple[str, float, float, str, tuple[int, ...]]]:
        """Pickle by the arguments, so that the error survives the way back from a worker process."""
        what = str(self).split("): ", 1)[-1]
        return type(self), (self.method, self.time, self.last_finite, what, self.experiments)


class DivergenceWarning(UserWarning):
    """Some experiments of a run diverged; they are recorded in its result and the others went on."""


class Info(NamedTuple):
    """What one step tells besides the new state.

    Attributes:
        background: `(E, N, *event)`, the forecast members before the analysis; None where the method draws the
            analysis without making a forecast first (FlowDAS).
        log_evidence: `(E,)`, log p(y_k | y_1..k-1) of this step's observed values in their own units; 0 where nothing
            was observed, NaN where the method has no estimate of it.
        ess: `(E,)`, effective sample size of the weights after the analysis and before any resampling; N for equal
            weights.
        background_log_weights: `(E, N)`, normalised weights of the background; None for equal weights.
        ancestors: `(E, N)`, index of the member of the state before the step that each member comes from; None where
            member n always comes from member n.
        weighting: what the weights mean where that is a choice: "global", "local" or "none" (FlowDAS records it).
    """

    background: Tensor | None
    log_evidence: Tensor
    ess: Tensor
    background_log_weights: Tensor | None = None
    ancestors: Tensor | None = None
    weighting: str | None = None


class FilterState(NamedTuple):
    """The state of a filter that is nothing but a (weighted) ensemble.

    Attributes:
        members: `(E, N, *event)`.
        log_weights: `(E, N)`, normalised.
        time: in the time unit of the dynamics.
    """

    members: Tensor
    log_weights: Tensor
    time: float


class HistoryState(NamedTuple):
    """The state of a filter whose members remember where they came through.

    Attributes:
        members: `(E, N, *event)`.
        log_weights: `(E, N)`, normalised.
        time: in the time unit of the dynamics.
        past: `(E, N, h, *event)`, earlier states, newest first; h = 0 unless the dynamics look at them.
    """

    members: Tensor
    log_weights: Tensor
    time: float
    past: Tensor


@runtime_checkable
class Filter(Protocol[State]):
    """The contract of a filter; see the module for the attributes and `check_filter` for a test of it."""

    name: ClassVar[str]
    exactness: ClassVar[Exactness]
    dynamics: Dynamics

    def init(self, members: Tensor, time: float = 0.0) -> State:
        """A state from initial members `(E, N, *event)`, drawn by the caller (prior, or truth + noise)."""
        ...

    def step(self, state: State, observation: Observation | None, time: float, *, rng: Rng) -> tuple[State, Info]:
        """Forecast to `time`, then assimilate `observation` (None: forecast only).

        `observation.y` has shape `(*obs)`, the same for all experiments, or `(E, 1, *obs)`. `rng` belongs to this step:
        the caller passes `streams.at(k)`.
        """
        ...

    def ensemble(self, state: State) -> tuple[Tensor, Tensor]:
        """Members `(E, N, *event)` and their normalised log weights `(E, N)`."""
        ...


class EnsembleFilter:
    """`init` and `ensemble` of every filter whose state is a `FilterState`."""

    def init(self, members: Tensor, time: float = 0.0) -> FilterState:
        """Equal weights on the members `(E, N, *event)`, at `time`."""
        check_members(members)
        return FilterState(members, uniform_log_weights(members), float(time))

    def ensemble(self, state: FilterState) -> tuple[Tensor, Tensor]:
        """Members `(E, N, *event)` and normalised log weights `(E, N)`."""
        return state.members, state.log_weights


def check_members(members: Tensor) -> None:
    """Raise a ValueError unless `members` is a finite floating `(E, N, *event)` tensor."""
    if members.ndim < 3 or not members.is_floating_point():
        raise ValueError(
            f"initial members have shape {tuple(members.shape)} and dtype {members.dtype}; expected a floating tensor "
            "(experiment, member, channel, *grid); one experiment is members[None]"
        )
    if not bool(torch.isfinite(members).all()):
        raise ValueError("initial members are not finite; no-data cells of a Space must be filled before")


def check_finite(members: Tensor, method: str, time: float, last_finite: float, what: str = "members") -> Tensor:
    """Return `members`, or raise `Diverged` naming the experiments and how many members are lost."""
    # One reduction in the usual case: a sum is finite only if all its terms are (or it overflows, then look closer).
    if bool(torch.isfinite(members.sum())):
        return members
    lost = ~torch.isfinite(members).flatten(2).all(-1)
    if bool(lost.any()):
        experiments = lost.any(-1).nonzero().flatten().tolist()
        raise Diverged(
            method,
            time,
            last_finite,
            f"{what} of experiment(s) {experiments} are not finite ({int(lost.sum())} of {lost.numel()} members)",
            experiments,
        )
    return members


def forecast(dynamics: Dynamics, members: Tensor, start: float, end: float, *, rng: Rng | None, method: str) -> Tensor:
    """Members `(E, N, *event)` moved from `start` to `end`; `Diverged` if they do not stay finite."""
    if end == start:
        return members
    return check_finite(
        advance(dynamics, members, start, end, rng=rng), method, end, start, "members after the forecast"
    )
