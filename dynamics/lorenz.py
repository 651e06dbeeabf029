"""Lorenz-63 and Lorenz-96, each an RK4 step and Gaussian noise added after it.

    x_{k+1} = M_dt(x_k) + noise_std e_k,    e_k ~ N(0, I)

Lorenz-63, event `(3,)`:    dx/dt = sigma (y - x),  dy/dt = x (rho - z) - y,  dz/dt = x y - beta z
Lorenz-96, event `(1, n)`:  dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,  indices modulo n

Both are dimensionless; states are in the equations' own ("physical") units, not standardised. The noise is given as
its standard deviation per step of `dt`, not per square root of time.

References:
    Lorenz (1963), Deterministic nonperiodic flow, https://doi.org/10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2
    Lorenz, Emanuel (1998), Optimal sites for supplementary weather observations,
    https://doi.org/10.1175/1520-0469(1998)055<0399:OSFSWO>2.0.CO;2
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574
    Chen et al. (2025), FlowDAS, https://arxiv.org/abs/2501.16642
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dynamics.covariance import FullCovariance, ScaledIdentity
from dynamics.fields import Coordinate, Field
from dynamics.integrators import rk4
from dynamics.random import Rng, normal
from dynamics.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, check_settings, one_or_several, several
from dynamics.space import Space

FLOWDAS_CENTER = (0.0, 0.0, 25.0)
"""What FlowDAS and SDA subtract from a Lorenz-63 state before they divide by `FLOWDAS_SCALE`."""
FLOWDAS_SCALE = (8.0, 9.0, 8.6)
"""What FlowDAS and SDA divide a centred Lorenz-63 state by; their observation and scores are in this unit."""


@dataclass(frozen=True)
class Lorenz63:
    """The Lorenz-63 system with additive noise; `TransitionDensity` if the noise is positive.

    Args:
        sigma: Prandtl number (10).
        rho: Rayleigh number over its critical value (28).
        beta: geometric factor (8/3).
        dt: length of an RK4 step (0.025, Rozet and Louppe 2023).
        noise_std: standard deviation of the noise of one step, in the units of the state (0: deterministic).
        prior_mean: mean of the prior law.
        prior_covariance: covariance of the prior law (default: that of SDA and FlowDAS, close to the climate's).
    """

    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8.0 / 3.0
    dt: float = 0.025
    noise_std: float = 0.0
    prior_mean: tuple[float, float, float] = (0.0, 0.0, 25.0)
    prior_covariance: tuple[tuple[float, float, float], ...] = ((64.0, 50.0, 0.0), (50.0, 81.0, 0.0), (0.0, 0.0, 75.0))

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, sigma=ANY, rho=ANY, beta=ANY, dt=POSITIVE, noise_std=NOT_NEGATIVE)
        check_settings(self, prior_mean=several(ANY, 3), prior_covariance=several(ANY, 3))

    @classmethod
    def flowdas(cls) -> Lorenz63:
        """The setting of SDA and FlowDAS: dt 0.025 and noise of variance dt, a standard deviation of 0.158 a step."""
        return cls(dt=0.025, noise_std=math.sqrt(0.025))

    @cached_property
    def space(self) -> Space:
        """Three scalar fields x, y, z: event `(3,)`."""
        names = {"x": "convective intensity", "y": "horizontal temperature difference", "z": "vertical distortion"}
        return Space(tuple(Field(name, "1", long_name=phrase) for name, phrase in names.items()))

    def tendency(self, x: Tensor, time: float) -> Tensor:
        """dx/dt, `(*b, 3)`."""
        a, b, c = x.unbind(-1)
        parts = [self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c]
        # States that lie component by component in memory stay so: mixing the two orders doubles the cost of a step.
        return torch.stack(parts, -1) if x.is_contiguous() else torch.stack(parts).movedim(0, -1)

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of N(prior_mean, prior_covariance), `(*shape, 3)`."""
        mean = torch.tensor(self.prior_mean, dtype=dtype, device=device)
        covariance = FullCovariance(torch.tensor(self.prior_covariance, dtype=dtype, device=device), (3,))
        return mean + covariance.colour(normal(rng, (*shape, 3), dtype=dtype, device=device))

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One RK4 step and its noise, `(*b, 3)`."""
        return _noisy(rk4(self.tendency, x, time, self.dt), self.noise_std, rng)

    def moments(self, x: Tensor, time: float) -> tuple[Tensor, ScaledIdentity]:
        """Mean (the RK4 step) and covariance (noise_std^2 I) of the next state."""
        return rk4(self.tendency, x, time, self.dt), _covariance(self.noise_std, x, (3,))

    def log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log transition density, `(*b,)`."""
        mean, covariance = self.moments(x, time)
        return covariance.log_prob(x_next - mean)


@dataclass(frozen=True)
class Lorenz96:
    """The Lorenz-96 system with additive noise on a ring; `TransitionDensity` if the noise is positive.

    Args:
        size: number n of variables (40), at least 4.
        forcing: F (8: chaotic).
        dt: length of an RK4 step (0.05, "6 hours" of Lorenz and Emanuel 1998).
        noise_std: standard deviation of the noise of one step, in the units of the state (0: deterministic).
        prior_mean: mean of the variables in the prior law, one number for all or n numbers (2.3, the climate's for
            F = 8, measured).
        prior_std: standard deviation of each variable in the prior law (3.6, measured likewise).
    """

    size: int = 40
    forcing: float = 8.0
    dt: float = 0.05
    noise_std: float = 0.0
    prior_mean: float | tuple[float, ...] = 2.3
    prior_std: float = 3.6

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, size=COUNT, forcing=ANY, dt=POSITIVE, noise_std=NOT_NEGATIVE)
        check_settings(self, prior_mean=one_or_several(ANY), prior_std=NOT_NEGATIVE)

    @cached_property
    def space(self) -> Space:
        """One field on a ring of n places, 1 apart: event `(1, n)`."""
        ring = Coordinate(torch.arange(self.size).double().numpy(), ("site",), units="1", long_name="place on the ring")
        return Space((Field("x", "1", ("site",), "Lorenz-96 variable"),), {"site": ring}, periodic=("site",))

    def tendency(self, x: Tensor, time: float) -> Tensor:
        """dx/dt, `(*b, 1, n)`."""
        advection = (torch.roll(x, -1, -1) - torch.roll(x, 2, -1)) * torch.roll(x, 1, -1)
        return advection - x + self.forcing

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Independent draws of N(prior_mean, prior_std^2), `(*shape, 1, n)`."""
        mean = torch.tensor(self.prior_mean, dtype=dtype, device=device)
        noise = normal(rng, (*shape, 1, self.size), dtype=dtype, device=device)
        return mean + self.prior_std * noise

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One RK4 step and its noise, `(*b, 1, n)`."""
        return _noisy(rk4(self.tendency, x, time, self.dt), self.noise_std, rng)

    def moments(self, x: Tensor, time: float) -> tuple[Tensor, ScaledIdentity]:
        """Mean (the RK4 step) and covariance (noise_std^2 I) of the next state."""
        return rk4(self.tendency, x, time, self.dt), _covariance(self.noise_std, x, (1, self.size))

    def log_prob(self, x_next: Tensor, x: Tensor, time: float) -> Tensor:
        """Log transition density, `(*b,)`."""
        mean, covariance = self.moments(x, time)
        return covariance.log_prob(x_next - mean)


def _noisy(mean: Tensor, std: float, rng: Rng | None) -> Tensor:
    if rng is None or std == 0:
        return mean
    return mean + std * normal(rng, tuple(mean.shape), dtype=mean.dtype, device=mean.device)


def _covariance(std: float, like: Tensor, event: tuple[int, ...]) -> ScaledIdentity:
    return ScaledIdentity(torch.tensor(std**2, dtype=like.dtype, device=like.device), event)
