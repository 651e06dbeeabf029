"""A learned transition on FlowDAS's published path, for reproducing the paper's rule.

    x_t = t^2 x_1 + (1 - t) x_0 + c (1 - t) sqrt(t) z,      x_0 the previous state, c of the size of the state itself

The law of the next state is that of the learned transition: its denoiser of unit residuals serves every path, since
`(x_t - (1 - t) x_0) / t^2` is the next state plus noise. What differs is where the path starts and how much noise it
carries, 50 times the transition's on Lorenz-63.

References:
    Chen et al. (2024), FlowDAS: a stochastic interpolant-based framework for data assimilation,
    https://arxiv.org/abs/2501.16642

Differs from the paper: its network learns this law on this path; noise has the residual's proportions in the channels,
and `noise` as its mean over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assimilate.learning.transition import LearnedTransition, residual_belief
from assimilate.posterior.paths import Interpolant
from assimilate.posterior.predictors import Clean, Context
from assimilate.posterior.samplers import EulerMaruyama, Sampler
from assimilate.posterior.time_grids import uniform_times
from assimilate.posterior.transition import draw
from dynamics import Rng, Space


@dataclass(frozen=True)
class PublishedPredictor:
    """The denoiser of a learned transition as a predictor on the published path."""

    transition: LearnedTransition
    path: Interpolant

    def __call__(self, x: Tensor, t: Tensor, context: Context) -> Clean:
        """See `Predictor`; the condition holds what the denoiser is told, and the standardised forecast at its end."""
        if context.base is None or context.condition is None:
            raise ValueError("pass context=transition.context(x, time)")
        axis, channels = -self.transition.event_dims, len(self.transition.space.channels)
        both = context.condition
        told, forecast = both.split([both.shape[axis] - channels, channels], axis)
        if self.transition.informed:
            told = both
        centre = self.transition.from_model(forecast)
        spread = self.transition.path.spread(x)
        return residual_belief(self.transition.denoiser, self.path, spread, x, t, context.base, centre, told)


@dataclass(frozen=True, eq=False)
class PublishedTransition:
    """A learned transition that runs from the previous state on the paper's path; a `GenerativeTransition`.

    Args:
        transition: gives the law of the next state.
        noise: c, mean over the channels, Space units (the paper: 1 in units of the state's standard deviation).
        steps: Euler-Maruyama steps (600 on Lorenz-63 in the paper).
    """

    transition: LearnedTransition
    noise: float
    steps: int = 600

    @property
    def space(self) -> Space:
        """What a state is."""
        return self.transition.space

    @property
    def dt(self) -> float:
        """Time between states."""
        return self.transition.dt

    @property
    def frames(self) -> int:
        """States that a step looks at, the newest included."""
        return self.transition.frames

    @property
    def path(self) -> Interpolant:
        """The published path, `beta = t^2`."""
        scale = self.transition.path.scale
        if not isinstance(scale, tuple):
            return Interpolant(power=2, scale=self.noise, grid_dims=self.transition.path.grid_dims)
        mean = sum(scale) / len(scale)
        return Interpolant(
            power=2, scale=tuple(self.noise * s / mean for s in scale), grid_dims=self.transition.path.grid_dims
        )

    @property
    def predictor(self) -> PublishedPredictor:
        """The belief about the next state along the published path."""
        return PublishedPredictor(self.transition, self.path)

    @property
    def sampler(self) -> Sampler:
        """Euler-Maruyama with the interpolant's own diffusion."""
        return EulerMaruyama("sigma")

    @property
    def times(self) -> Tensor:
        """Equal steps; the drift is not defined at the very ends."""
        return uniform_times(self.steps, first=1e-5, last=1.0 - 1.0 / self.steps, dtype=torch.float64)

    def context(self, x: Tensor, time: float = 0.0, past: Tensor | None = None) -> Context:
        """Base: the previous state; condition: the states so far and the forecast; see `LearnedTransition.context`."""
        inner = self.transition.context(x, time, past)
        assert inner.base is not None and inner.condition is not None
        if self.transition.informed:
            return Context(x, inner.condition)
        forecast = self.transition.to_model(inner.base)
        return Context(x, torch.cat([inner.condition, forecast], -self.transition.event_dims))

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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PublishedTransition:
        """A copy on another device or in another precision."""
        return replace(self, transition=self.transition.to(device, dtype))

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """A draw of the next state; with `rng=None` the forecast."""
        if rng is None:
            return self.transition.step(x, time, rng=None)
        return self.transition.mask(draw(self, x, time, event_dims=self.transition.event_dims, rng=rng).x)
