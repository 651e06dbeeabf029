"""A learned forecast with a Gaussian residual: the transition that most learned models would have.

    x_k = f(x_{k-1}) + s z,      z ~ N(0, I),      s one number a channel

It has a known density, and shows what a transition with two modes loses when it is taken for a Gaussian. The spread is
that of a forecast from all it can look at, so the forecast must be one from a single state: what uses a density steps
from that alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assimilate.errors import UserError
from assimilate.learning.transition import LearnedTransition
from dynamics import Rng, Space, normal


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A diagonal covariance, a `dynamics.Covariance`.

    Args:
        std: standard deviations, `(*event)`.
    """

    std: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of an event."""
        return tuple(self.std.shape)

    def dense(self) -> Tensor:
        """The matrix `(d, d)` on flattened events."""
        return torch.diag(self.std.flatten() ** 2)

    def diagonal(self) -> Tensor:
        """The variances `(*event)`."""
        return self.std**2

    def colour(self, z: Tensor) -> Tensor:
        """`std z`."""
        return self.std * z

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density of `residual` `(*b, *event)`, `(*b,)`."""
        events = tuple(range(-self.std.ndim, 0))
        squared = (residual / self.std).square().sum(events)
        return -0.5 * squared - self.std.log().sum() - 0.5 * math.log(2 * math.pi) * self.std.numel()


@dataclass(frozen=True, eq=False)
class GaussianForecast:
    """A learned forecast with Gaussian noise added, `x_k = f(x_{k-1}) + s z`; a `Dynamics` with known density.

    Args:
        transition: gives the forecast, the Space and the prior.
        std: s, one number a channel, Space units.

    Raises:
        UserError: a transition that looks at several states.
    """

    transition: LearnedTransition
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a spread that would be that of other forecasts."""
        if self.transition.frames > 1:
            raise UserError(
                f"a Gaussian transition steps from one state, and this one was trained on {self.transition.frames} "
                "(frames): from one alone its forecast has another spread. Use the learned transition, or train one "
                "with frames = 1"
            )

    @property
    def space(self) -> Space:
        """What a state is."""
        return self.transition.space

    @property
    def dt(self) -> float:
        """Time between states."""
        return self.transition.dt

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """See `LearnedTransition.prior`."""
        return self.transition.prior(shape, rng=rng, dtype=dtype, device=device)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A draw of the next state; with `rng=None` the forecast."""
        mean = self.transition.step(x, time, rng=None)
        if rng is None:
            return mean
        noise = normal(rng, tuple(x.shape), dtype=x.dtype, device=x.device)
        return self.transition.mask(mean + self._column(x) * noise)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GaussianForecast:
        """A copy on another device or in another precision."""
        return replace(self, transition=self.transition.to(device, dtype))

    def moments(self, x: Tensor, time: float) -> tuple[Tensor, Diagonal]:
        """The forecast and the residual's covariance; no-data cells count as if they had noise."""
        return self.transition.step(x, time, rng=None), Diagonal(self._column(x).expand(self.space.event_shape))

    def log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log density of `x_next` given `x`, `(*b,)`."""
        mean, covariance = self.moments(x, time)
        return covariance.log_prob(x_next - mean)

    def _column(self, like: Tensor) -> Tensor:
        grid_dims = len(self.space.grid_shape)
        return torch.tensor(self.std, dtype=like.dtype, device=like.device).reshape(-1, *(1,) * grid_dims)
