"""Generative transitions: `p(x_k | x_{k-1})` as a path, a predictor and a sampler.

A transition of this kind is a `Dynamics` (its step is the unguided sampler) that also shows its inside, so that an
observation of `x_k` can be taken in while `x_k` is being drawn. `assimilate.learning.transition` makes one from a
trained network; `ExactTransition` below makes one from any system whose step is Gaussian, for tests and for
telling the error of a method from that of a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.paths import Interpolant, Path
from assimilate.posterior.predictors import Context, GaussianPredictor, Predictor
from assimilate.posterior.samplers import Ancestral, Sample, Sampler
from assimilate.posterior.time_grids import ratio_times
from dynamics.random import Rng, normal
from dynamics.settings import COUNT, check_settings
from dynamics.space import Space
from observations.likelihood import Likelihood


@runtime_checkable
class GenerativeTransition(Protocol):
    """A `Dynamics` drawn by a sampler along a path.

    Attributes:
        path: the Gaussian path from the start to the next state.
        predictor: the clean mean along it.
        sampler: how a step is drawn when nothing is observed.
        times: the sampler's grid, `(K,)`.
    """

    @property
    def path(self) -> Path:
        """The path."""
        ...

    @property
    def predictor(self) -> Predictor:
        """The predictor."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The default sampler."""
        ...

    @property
    def times(self) -> Tensor:
        """The default time grid."""
        ...

    def context(self, x: Tensor, time: float) -> Context:
        """Base and condition of a step from state `x` at `time`, `(*b, *event)`."""
        ...


@runtime_checkable
class Historical(Protocol):
    """A capability of transitions that look at several past states.

    Attributes:
        frames: how many, the newest included; 1 for a transition that knows the newest alone.
    """

    frames: int

    def context(self, x: Tensor, time: float, past: Tensor | None = None) -> Context:
        """Base and condition of a step from `x`.

        Args:
            x: newest states, `(*b, *event)`.
            time: their time.
            past: states before them, newest first, `(*b, h, *event)`; any h, what is missing is unknown.
        """
        ...


@runtime_checkable
class GenerativePrior(Protocol):
    """A capability of transitions that can also draw a state without a past, from the same path and predictor."""

    def prior_context(self, x: Tensor) -> Context:
        """Base and condition of `p(x_k)` itself, for states shaped like `x`."""
        ...


@runtime_checkable
class Bounded(Protocol):
    """A capability of transitions whose states have bounds that a sampler does not know."""

    def admissible(self, x: Tensor) -> Tensor:
        """The nearest states within the bounds."""
        ...


def draw(
    transition: GenerativeTransition,
    x: Tensor,
    time: float,
    *,
    event_dims: int,
    rng: Rng,
    likelihood: Likelihood | None = None,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    sampler: Sampler | None = None,
    times: Tensor | None = None,
    weighted: bool = False,
    context: Context | None = None,
) -> Sample:
    """One step of a generative transition, guided by an observation of the next state if one is given.

    Args:
        transition: the transition.
        x: states at `time`, `(*b, *event)`.
        time: time of `x`.
        event_dims: trailing dims of one event.
        rng: random numbers.
        likelihood: `p(y | x_k)`.
        y: observed values, leading dims broadcastable against b.
        guidance: how the observation enters; without it the step is the prior's.
        sampler: the transition's own by default.
        times: the transition's own by default.
        weighted: return the log importance ratio of the guided steps.
        context: base and condition, where they are not those of a step from `x`.
    """
    context = transition.context(x, time) if context is None else context
    base = torch.zeros_like(x) if context.base is None else context.base
    z = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
    grid = transition.times if times is None else times
    # A grid that begins after t = 0 begins where noise hides the state, as if the next state were the base.
    start = transition.path.start(base, z) if grid[0] == 0 else transition.path.sample(grid[0], base, base, z)
    predictor = transition.predictor
    if guidance is not None and likelihood is not None and y is not None:
        predictor = condition(
            predictor, transition.path, likelihood, y, guidance, event_dims=event_dims, rng=rng
        )
    return (sampler or transition.sampler)(
        predictor,
        transition.path,
        start,
        times=grid,
        event_dims=event_dims,
        rng=rng,
        context=context,
        weighted=weighted,
    )


@dataclass(frozen=True)
class ExactTransition:
    """The generative transition of a system with a Gaussian step, with the exact predictor.

    Args:
        dynamics: a `Dynamics` that is a `TransitionDensity` with one covariance for all states.
        path: from the step's mean to the next state; an `Interpolant` whose scale is the step's standard deviation by
            default (the root mean variance).
        sampler: see `GenerativeTransition`.
        steps: predictor calls a step.
    """

    dynamics: Any
    path: Path = None  # type: ignore[assignment]
    sampler: Sampler = Ancestral()
    steps: int = 20

    def __post_init__(self) -> None:
        """Check the settings; choose the scale from the dynamics unless a path is given."""
        check_settings(self, steps=COUNT)
        if self.path is None:
            variance = float(self._covariance().diagonal().mean())
            object.__setattr__(self, "path", Interpolant(scale=variance**0.5))

    def _covariance(self, dtype: torch.dtype = torch.float64) -> Tensor:
        origin = torch.zeros(self.dynamics.space.event_shape, dtype=dtype)
        return self.dynamics.moments(origin, 0.0)[1].dense().to(dtype)

    @property
    def space(self) -> Space:
        """The space of the dynamics."""
        return self.dynamics.space

    @property
    def dt(self) -> float:
        """The step of the dynamics."""
        return self.dynamics.dt

    @property
    def times(self) -> Tensor:
        """A grid whose last ratio leaves 0.01 % of the variance unresolved."""
        return ratio_times(self.path, self.steps, largest=30.0, smallest=0.01)

    def prior(self, shape: tuple[int, ...], *, rng: Rng, **options: Any) -> Tensor:
        """The prior of the dynamics."""
        return self.dynamics.prior(shape, rng=rng, **options)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One unguided step; the mean alone without `rng`."""
        if rng is None:
            return self.dynamics.moments(x, time)[0]
        return draw(self, x, time, event_dims=len(self.space.event_shape), rng=rng).x

    def context(self, x: Tensor, time: float) -> Context:
        """Base and condition are the step's mean."""
        mean = self.dynamics.moments(x, time)[0]
        return Context(base=mean, condition=mean)

    @property
    def predictor(self) -> GaussianPredictor:
        """The exact clean mean and covariance."""

        def mean(context: Context) -> Tensor:
            assert context.condition is not None
            return context.condition

        return GaussianPredictor(self._covariance(), self.path, mean)
