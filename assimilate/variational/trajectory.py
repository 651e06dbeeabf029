r"""A stretch of trajectory as a function of a control, and its misfit to the observations in it.

    x_0     = x_b + L v_0                      (or known)
    x_{k+1} = M(x_k)                           strong constraint: the model is perfect
    x_{k+1} = M(x_k) + S_k w_k                 weak constraint: S S^T = Q, one w for every model step

with v_0 and w standard normal. M is one deterministic step of the dynamics, or the mean of its transition density.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assimilate.filters.departures import observed_values
from assimilate.variational.background import Background
from assimilate.variational.minimise import Cost
from dynamics.base import Dynamics, TransitionDensity, steps_between
from observations.likelihood import Observation
from observations.noise import GaussianNoise


@dataclass(frozen=True, eq=False)
class Stretch:
    """The states at some times as a function of `(v_0, w_1, w_2, ...)`, flat and in this order.

    Args:
        dynamics: the system.
        guess: x_b, `(E, 1, *event)`.
        covariance: B; None where the first state is known.
        times: of the states, increasing.
        weak: whether there are model errors.
        model_error: Q; None for that of the dynamics' transition density.
    """

    dynamics: Dynamics
    guess: Tensor
    covariance: Background | None
    times: Sequence[float]
    weak: bool = False
    model_error: Background | None = None

    @property
    def sizes(self) -> list[int]:
        """Numbers of values of v_0 and of each w."""
        first = 0 if self.covariance is None else self.covariance.size
        each = self.dynamics.space.size if self.model_error is None else self.model_error.size
        return [first, *[each] * (self._steps if self.weak else 0)]

    @property
    def size(self) -> int:
        """Number of values of a control."""
        return sum(self.sizes)

    def states(self, control: Tensor) -> Tensor:
        """The states, `(E, K, size) -> (E, K, T, *event)`."""
        first, *errors = control.split(self.sizes, -1)
        x = self.guess.expand(*control.shape[:2], *self.guess.shape[2:])
        if self.covariance is not None:
            x = x + self.covariance.root(first)
        found, number = [x], 0
        for start, end in zip(self.times[:-1], self.times[1:], strict=True):
            for k in range(steps_between(self.dynamics, start, end)):
                x = self._step(x, start + k * self.dynamics.dt, errors[number] if errors else None)
                number += 1
            found.append(x)
        return torch.stack(found, 2)

    def cost(self, observations: Sequence[Observation | None]) -> Cost:
        """J of the control under one observation (or None) for each time."""
        seen = [(k, o) for k, o in enumerate(observations) if o is not None]
        for _, observation in seen:
            observed_values(observation, self.guess)

        def residual(control: Tensor) -> Tensor:
            states = self.states(control)
            parts = [o.likelihood.residual(o.y, states[:, :, k]).flatten(2) for k, o in seen]
            return torch.cat(parts, -1) if parts else control.new_zeros(*control.shape[:-1], 0)

        def misfit(control: Tensor) -> Tensor:
            return -self.log_likelihood(observations, control)

        gaussian = all(isinstance(o.likelihood.noise, GaussianNoise) for _, o in seen)
        return Cost(residual, self.guess.new_zeros(1), None if gaussian else misfit)

    def log_likelihood(self, observations: Sequence[Observation | None], control: Tensor) -> Tensor:
        """Log p of all observed values given the control, `(E, K)`."""
        states = self.states(control)
        total = control.new_zeros(control.shape[:-1])
        for k, observation in enumerate(observations):
            if observation is not None:
                total = total + observation.likelihood.log_prob(observation.y, states[:, :, k])
        return total

    @property
    def _steps(self) -> int:
        return steps_between(self.dynamics, self.times[0], self.times[-1])

    def _step(self, x: Tensor, time: float, error: Tensor | None) -> Tensor:
        if error is None:
            return self.dynamics.step(x, time, rng=None)
        if self.model_error is not None:
            return self.dynamics.step(x, time, rng=None) + self.model_error.root(error)
        assert isinstance(self.dynamics, TransitionDensity)
        mean, covariance = self.dynamics.moments(x, time)
        return mean + covariance.colour(error.reshape(x.shape))


def observed_flags(observations: Sequence[Observation | None], guess: Tensor) -> Tensor:
    """Which values of the residual are observed, `(E, 1, m)`."""
    flags = [observed_values(o, guess) for o in observations if o is not None]
    if not flags:
        return torch.zeros(guess.shape[0], 1, 0, dtype=torch.bool, device=guess.device)
    return torch.cat(flags, -1).unsqueeze(1)
